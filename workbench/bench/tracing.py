"""What observing costs: the same load unobserved, with the default ring, recorded, and recorded to disk.

Every round runs each way right beside a run that nobody observes, before it in one round and behind it in the
next, and the ratio of the two counts: what else the machine does falls on both alike. Over many short rounds
the median of the ratios is told, with the interval that holds it in 19 of 20 cases and the middle half of the
ratios. One way is to observe nothing again: its ratios are the noise. Beside the throughput of a whole engine
stand the microseconds of plan + commit with no model behind them.
"""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from workbench.bench import scheduler
from workbench.bench.provenance import provenance
from workbench.bench.throughput import Load, make_prompts
from workbench.bench.workloads import MODELS, model_folder
from workbench.engine.events import Observer
from workbench.llm import LLM
from workbench.models.zoo.registry import DEFAULT
from workbench.params import SamplingParams
from workbench.trace import Trace
from workbench.trace.journal import FILE

OFF = "off"
MODES = ("off_again", "ring", "record", "record_path")
HOST_STEPS = 640  # a round: what is written many at once has to come often enough to be seen
MOST_HOST_ROUNDS = 5
SHOWN = ("mode", "round", "off_tokens_per_s", "out_tokens_per_s", "ratio", "bytes")

Row = dict[str, Any]


class Run(NamedTuple):
    """One load, as one way of observing saw it."""

    tokens_per_s: float
    bytes: int  # written to disk


class Middle(NamedTuple):
    """The median of several figures."""

    median: float
    low: float  # the interval that holds the true median in at least 95 of 100 cases,
    high: float  # whatever the figures' distribution; their least and largest where they are fewer than 6
    quartiles: tuple[float, float]  # of the figures: half of them lie between


def measure(model: str | None, load: Load, rounds: int) -> tuple[list[Row], Row]:
    """A row a way and round; every round has new prompts, the same for all its runs."""
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: use at least 1")
    name = model or f"zoo/{DEFAULT}"
    load_format: Literal["dummy", "auto"] = "dummy" if name in MODELS else "auto"
    rows: list[Row] = []
    with model_folder(name) as folder, tempfile.TemporaryDirectory(prefix="workbench-") as scratch:
        longest = load.longest + load.out
        with LLM(
            str(folder), load_format=load_format, skip_tokenizer_init=True, max_model_len=longest
        ) as llm:
            origin = provenance(llm.config.device_name) | {"model": name, **load._asdict()}
            _run(llm, OFF, load, 999, Path(scratch))
            for number in tqdm(range(rounds), desc="Measuring", unit="round"):
                turn = number % len(MODES)
                for mode in MODES[turn:] + MODES[:turn]:
                    rows.append(origin | _pair(llm, mode, load, number, Path(scratch)))
            return rows, {"engine": repr(llm), "rounds": rounds} | _summary(rows)


def _pair(llm: LLM, mode: str, load: Load, number: int, scratch: Path) -> Row:
    """A way of observing and, right beside it, none."""
    order = (OFF, mode) if number % 2 else (mode, OFF)
    runs = {way: _run(llm, way, load, number, scratch) for way in order}
    observed, unobserved = runs[mode], runs[OFF]
    return {
        "mode": mode,
        "round": number,
        "off_tokens_per_s": round(unobserved.tokens_per_s, 1),
        "out_tokens_per_s": round(observed.tokens_per_s, 1),
        "ratio": round(observed.tokens_per_s / unobserved.tokens_per_s, 4),
        "bytes": observed.bytes,
    }


def _run(llm: LLM, mode: str, load: Load, number: int, scratch: Path) -> Run:
    prompts = make_prompts(load, 1000, number)
    params = SamplingParams(temperature=0, max_tokens=load.out, ignore_eos=True)
    llm.reset_prefix_cache()
    gc.collect()  # what earlier runs left is not collected on this one's time
    folder = scratch / f"{number}"
    with _observed(llm, mode, folder):
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert tokens == load.requests * load.out, f"{mode}: {tokens} tokens were generated"
    return Run(tokens / seconds, (folder / FILE).stat().st_size if mode == "record_path" else 0)


@contextmanager
def _observed(llm: LLM, mode: str, folder: Path) -> Iterator[None]:
    """The engine as `mode` says; afterwards with its ring again."""
    if mode == "ring":
        yield
    elif mode.startswith("record"):
        with llm.trace.record(folder if mode == "record_path" else None):
            yield
    else:
        llm._emit.remove(llm.trace.observer)
        try:
            yield
        finally:
            llm._emit.add(llm.trace.observer)


def _summary(rows: list[Row]) -> Row:
    summary: Row = {"off_tokens_per_s": round(statistics.median(row["off_tokens_per_s"] for row in rows), 1)}
    for mode in MODES:
        found = middle([row["ratio"] for row in rows if row["mode"] == mode])
        summary[f"{mode}_ratio"] = round(found.median, 4)
        summary[f"{mode}_interval"] = [round(found.low, 4), round(found.high, 4)]
        summary[f"{mode}_quartiles"] = [round(quartile, 4) for quartile in found.quartiles]
    return summary


def middle(figures: Sequence[float]) -> Middle:
    """The median, with the interval between two of the figures that holds the true one.

    Each figure lies below the true median with probability 1/2, so how many do is binomial: counted in from
    both ends as far as at most 2.5 % of cases are left outside.
    """
    ordered, n = sorted(figures), len(figures)
    outside, inward = 0.0, 0
    while inward < (n - 1) // 2:
        outside += math.comb(n, inward) / 2**n
        if outside > 0.025:
            break
        inward += 1
    inward = max(inward - 1, 0)
    low, high = np.percentile(ordered, [25, 75]).tolist()
    return Middle(statistics.median(ordered), ordered[inward], ordered[n - 1 - inward], (low, high))


# --- without a model ------------------------------------------------------------------------------------


def measure_host(running: Sequence[int], rounds: int) -> Row:
    """Microseconds of a steady step (plan + commit) in every way, by the number of running requests."""
    ways = (OFF, *MODES)
    found: dict[str, list[float]] = {}
    for number in range(min(rounds, MOST_HOST_ROUNDS)):
        turn = number % len(ways)
        for mode in ways[turn:] + ways[:turn]:
            for count in running:
                with _observers(mode) as observers:
                    (cost,) = scheduler.measure((count,), HOST_STEPS, observers=observers)
                found.setdefault(f"step_us_{count}_{mode}", []).append(cost.step_us_mean)
    names = [f"step_us_{count}_{mode}" for count in running for mode in ways]
    return {name: round(statistics.median(found[name]), 1) for name in names}


@contextmanager
def _observers(mode: str) -> Iterator[Sequence[Observer]]:
    if mode.startswith(OFF):
        yield ()
        return
    ring = Trace()
    if mode == "ring":
        yield (ring.observer,)
        return
    with (
        tempfile.TemporaryDirectory(prefix="workbench-") as folder,
        ring.record(Path(folder) / "trace" if mode == "record_path" else None),
    ):
        yield (ring.observer,)
