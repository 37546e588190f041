"""What something costs an engine: the same load with it and, right beside it, without; the ratios' median.

What else the machine does falls on both runs of a pair alike, and which of the two goes first alternates.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.bench.throughput import Load, make_prompts
from workbench.llm import LLM
from workbench.params import SamplingParams

Row = dict[str, Any]


class Middle(NamedTuple):
    """The median of several figures."""

    median: float
    low: float  # the interval that holds the true median in at least 95 of 100 cases,
    high: float  # whatever the figures' distribution; their least and largest where they are fewer than 6
    quartiles: tuple[float, float]  # of the figures: half of them lie between


def speed(llm: LLM, load: Load, number: int) -> float:
    """Generated tokens a second of a load; the prompts are those of the round `number`."""
    prompts = make_prompts(load, 1000, number)
    params = SamplingParams(temperature=0, max_tokens=load.out, ignore_eos=True)
    llm.reset_prefix_cache()
    gc.collect()  # what earlier runs left is not collected on this one's time
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert tokens == load.requests * load.out, f"{tokens} tokens were generated"
    return tokens / seconds


def pair(off: str, mode: str, number: int, run: Callable[[str], float]) -> Row:
    """One pair of runs as a row: `run` is told the way, and gives tokens a second."""
    order = (off, mode) if number % 2 else (mode, off)
    speeds = {way: run(way) for way in order}
    return {
        "mode": mode,
        "round": number,
        "off_tokens_per_s": round(speeds[off], 1),
        "out_tokens_per_s": round(speeds[mode], 1),
        "ratio": round(speeds[mode] / speeds[off], 4),
    }


def summary(rows: Sequence[Row], modes: Sequence[str]) -> Row:
    """The median ratio of each way, with its interval and quartiles."""
    found: Row = {"off_tokens_per_s": round(statistics.median(row["off_tokens_per_s"] for row in rows), 1)}
    for mode in modes:
        ratios = middle([row["ratio"] for row in rows if row["mode"] == mode])
        found[f"{mode}_ratio"] = round(ratios.median, 4)
        found[f"{mode}_interval"] = [round(ratios.low, 4), round(ratios.high, 4)]
        found[f"{mode}_quartiles"] = [round(quartile, 4) for quartile in ratios.quartiles]
    return found


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
