"""What the host pays for a step: plan + commit with no model behind them.

The runner is replaced by random tokens. Prefix caching and stop checks are on, and prompts of mixed lengths
spread the block boundaries over the steps, so that every step hashes, takes and registers blocks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from workbench.cache.hashing import HashAlgorithm, hash_function
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.engine.books import Limits
from workbench.engine.clock import wall_clock
from workbench.engine.events import Emitter, Observer
from workbench.engine.policies import FirstComeFirstServed
from workbench.engine.request import Request, Times
from workbench.engine.result import StepResult
from workbench.engine.scheduler import Scheduler
from workbench.params import SamplingParams

BLOCK_SIZE = 16
MAX_LENGTH = 2048
VOCABULARY = 32_000
STOP_ID = VOCABULARY  # checked every step, never drawn
ROUND = 64  # steps, or requests
WARM_UP = 8


class StepCost(NamedTuple):
    running: int
    step_us_mean: float  # plan + commit; of the median round
    step_us_p50: float
    step_us_p99: float
    plan_us_mean: float
    commit_us_mean: float


def measure(
    running: tuple[int, ...] = (1, 64, 256, 1024),
    steps: int = 320,
    algorithm: HashAlgorithm = "sha256",
    observers: Sequence[Observer] = (),
) -> list[StepCost]:
    """Mean cost of a steady decode step, in microseconds, at each number of running requests.

    `steps` is rounded up to rounds of 64. Means are over a round; of the rounds the median counts, so that a
    moment in which another program had the core does not. The percentiles are over all steps.
    """
    whole = -(-steps // ROUND) * ROUND
    return [_measure_steps(count, whole, algorithm, observers) for count in running]


def measure_add(tokens: int = 512, count: int = 512) -> float:
    """Microseconds to make and queue a request of `tokens` prompt tokens given as a list of ints.

    The mean over a round of 64 requests, of the median round; `count` is a multiple of 64.
    """
    scheduler = _scheduler(1024, "sha256")
    prompts = np.random.default_rng(0).integers(0, VOCABULARY, (count, tokens)).tolist()
    params = SamplingParams(max_tokens=64)
    rounds = []
    for first in range(0, count, ROUND):
        began = time.perf_counter()
        for number in range(first, first + ROUND):
            scheduler.add(_request(scheduler, number, prompts[number], params))
        rounds.append((time.perf_counter() - began) / ROUND * 1e6)
    return float(np.median(rounds))


def measure_admission(tokens: int = 512, count: int = 512) -> float:
    """Microseconds from a request's arrival to its first plan: add, look up, reserve, hash."""
    scheduler = _scheduler(1024, "sha256")
    prompts = np.random.default_rng(1).integers(0, VOCABULARY, (count, tokens)).tolist()
    params = SamplingParams(max_tokens=64)
    began = time.perf_counter()
    for number, prompt in enumerate(prompts):
        scheduler.add(_request(scheduler, number, prompt, params))
    admitted = 0
    while admitted < count:
        plan = scheduler.plan()
        assert plan is not None, "waiting requests and no plan"
        admitted += len(plan.added)
        scheduler.commit(
            _answer(plan.index, plan.rows[plan.samples], np.zeros(int(plan.samples.sum()), np.int32))
        )
    return (time.perf_counter() - began) / count * 1e6


def _scheduler(rows: int, algorithm: HashAlgorithm, observers: Sequence[Observer] = ()) -> Scheduler:
    pool = BlockPool(rows * MAX_LENGTH // BLOCK_SIZE)
    cache = CacheManager(pool, [KVGroup((0,))], BLOCK_SIZE, hash_function(algorithm), caching=True)
    limits = Limits(budget=16_384, max_rows=rows, max_length=MAX_LENGTH)
    emit = Emitter()
    for observer in observers:
        emit.add(observer)
    return Scheduler(limits, cache, FirstComeFirstServed(), wall_clock, emit)


def _request(scheduler: Scheduler, number: int, prompt: list[int], params: SamplingParams) -> Request:
    return Request(
        request_id=str(number),
        prompt_token_ids=np.array(prompt, np.int32),
        params=params,
        max_length=min(len(prompt) + (params.max_tokens or MAX_LENGTH), MAX_LENGTH),
        seed=number,
        eos_token_ids=(STOP_ID,),
        times=Times(time.perf_counter()),
        tables=scheduler.cache.open(b""),
    )


def _answer(index: int, rows: np.ndarray, token_ids: np.ndarray) -> StepResult:
    return StepResult(index, rows, token_ids, None, 0.0, 0.0, 0.0)


def _measure_steps(
    running: int, steps: int, algorithm: HashAlgorithm, observers: Sequence[Observer]
) -> StepCost:
    rng = np.random.default_rng(running)
    scheduler = _scheduler(running, algorithm, observers)
    params = SamplingParams(max_tokens=MAX_LENGTH)
    for number, length in enumerate(rng.integers(100, 612, running)):
        scheduler.add(_request(scheduler, number, rng.integers(0, VOCABULARY, length).tolist(), params))
    answers = rng.integers(0, VOCABULARY, (steps + 96, running)).astype(np.int32)
    plan_s, commit_s = [], []
    for answer in answers:
        began = time.perf_counter()
        plan = scheduler.plan()
        planned = time.perf_counter()
        assert plan is not None, "running requests and no plan"
        steady = len(plan.rows) == running and not plan.added and int(plan.counts.max()) == 1
        rows = plan.rows[plan.samples]
        result = _answer(plan.index, rows, answer[: len(rows)])
        answered = time.perf_counter()
        scheduler.commit(result)
        if steady:
            plan_s.append(planned - began)
            commit_s.append(time.perf_counter() - answered)
    parts = np.array([plan_s, commit_s])[:, WARM_UP : WARM_UP + steps] * 1e6
    assert parts.shape[1] == steps, f"{parts.shape[1]} steady steps, not {steps}"
    p50, p99 = np.percentile(parts.sum(0), [50, 99]).tolist()
    by_round = parts.reshape(2, -1, ROUND).mean(2)
    middle = np.argsort(by_round.sum(0))[by_round.shape[1] // 2]
    plan_mean, commit_mean = by_round[:, middle].tolist()
    return StepCost(running, plan_mean + commit_mean, p50, p99, plan_mean, commit_mean)
