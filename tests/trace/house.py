"""A scheduler with a runner that has no model: preemptions, hits and overlap, in milliseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.cache.hashing import hash_function
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.engine.books import Limits
from workbench.engine.events import Emitter, EngineStarted
from workbench.engine.loop import Engine
from workbench.engine.plan import StepPlan
from workbench.engine.policies import FirstComeFirstServed
from workbench.engine.request import Request, Times
from workbench.engine.result import LogprobColumns, StepResult
from workbench.engine.scheduler import Scheduler
from workbench.lora.adapters import Adapters
from workbench.params import SamplingParams
from workbench.sim.adapters import NamedAdapters
from workbench.trace import Trace

BLOCK_SIZE = 4
MAX_LENGTH = 96
VOCABULARY = 50


def token_after(token_ids: Sequence[int]) -> int:
    digest = hashlib.blake2b(np.array(token_ids, np.int32).tobytes(), digest_size=2).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


class TickingClock:
    """Each reading is a millisecond after the last."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 1e-3
        return self.now


class CountingRunner:
    """Computes the next token from those before it, and counts what it was asked to compute."""

    def __init__(self, clock: TickingClock) -> None:
        self.clock = clock
        self.computed = 0
        self.plans: list[StepPlan] = []
        self.fail_at: int | None = None
        self.reset()

    def reset(self) -> None:
        self.tokens: dict[int, list[int]] = {}

    def launch(self, plan: StepPlan) -> StepResult:
        if plan.index == self.fail_at:
            raise RuntimeError("injected")
        self.computed += plan.num_tokens
        self.plans.append(plan)
        for row in plan.removed.tolist():
            del self.tokens[row]
        for added in plan.added:
            self.tokens[added.row] = added.token_ids.tolist()
        rows = plan.rows[plan.samples]
        sampled = np.array([token_after(self.tokens[row]) for row in rows.tolist()], np.int32)
        for row, token_id in zip(rows.tolist(), sampled.tolist(), strict=True):
            self.tokens[row].append(token_id)
        logprobs = LogprobColumns(
            -(sampled + 1).astype(np.float32) / 8,
            sampled + 1,
            sampled[:, None],
            np.zeros((len(rows), 1), np.float32),
            np.zeros(len(rows), np.float32),
        )
        began = self.clock()
        return StepResult(plan.index, rows, sampled, logprobs, began, self.clock(), 5e-4)

    def collect(self, ticket: StepResult) -> StepResult:
        return ticket


@dataclass
class Thing:
    """What a request needs."""

    ready: bool = False
    failure: str | None = None

    def wait(self, seconds: float) -> None:
        raise AssertionError("somebody else runs")


@dataclass
class House:
    """An engine, what observes it, and the requests it was given."""

    engine: Engine[StepResult]
    runner: CountingRunner
    emitter: Emitter
    trace: Trace
    requests: list[Request]
    config: dict[str, object]
    max_length: int = MAX_LENGTH

    def add(
        self,
        prompt: Sequence[int],
        max_tokens: int = 4,
        cache_root: bytes = b"",
        need: Thing | None = None,
        adapter: int | None = None,
        **params: object,
    ) -> Request:
        scheduler = self.engine.scheduler
        request = Request(
            request_id=str(len(self.requests)),
            prompt_token_ids=np.array(prompt, np.int32),
            params=SamplingParams(max_tokens=max_tokens, **params),
            max_length=min(len(prompt) + max_tokens, self.max_length),
            seed=0,
            eos_token_ids=(0,),
            times=Times(self.runner.clock()),
            tables=scheduler.cache.open(cache_root),
            need=need,
            adapter=adapter,
        )
        self.requests.append(request)
        scheduler.add(request)
        return request

    def run(self) -> House:
        while self.engine.scheduler.has_work:
            self.engine.advance()
        return self


def build(
    budget: int = 16,
    blocks: int = 40,
    depth: int = 0,
    max_steps: int | None = None,
    rows: int = 8,
    groups: Sequence[KVGroup] = (KVGroup((0,)),),
    watched: bool = True,
    caching: bool = True,
    adapters: Sequence[str] | Adapters = (),
    max_loras: int = 2,
    max_length: int = MAX_LENGTH,
) -> House:
    clock, emitter = TickingClock(), Emitter()
    cache = CacheManager(BlockPool(blocks), groups, BLOCK_SIZE, hash_function("sha256"), caching=caching)
    limits, home = Limits(budget, rows, max_length), adapters if isinstance(adapters, Adapters) else None
    if home is None and adapters:
        home = NamedAdapters(adapters, max_loras)
    scheduler = Scheduler(limits, cache, FirstComeFirstServed(), clock, emitter, adapters=home)
    trace = Trace(max_steps, decode=lambda ids: " ".join(f"t{token_id}" for token_id in ids))
    if watched:
        emitter.add(trace.observer)
    config: dict[str, object] = {
        "model": "fake",
        "device": "cpu",
        "budget": budget,
        "num_blocks": blocks,
        "block_size": BLOCK_SIZE,
        "enable_prefix_caching": caching,
        "prefix_caching_hash_algo": "sha256",
        "kv_windows": tuple(group.window for group in groups),
        "enable_lora": bool(adapters),
        "max_loras": max_loras,
    }
    emitter(EngineStarted(clock(), config))
    runner = CountingRunner(clock)
    return House(Engine(scheduler, runner, depth), runner, emitter, trace, [], config, max_length)
