"""Runs of the same traffic side by side: differences request by request, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.bench.result import BenchmarkResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Comparison:
    """Several runs of one traffic; the first is what the others are held against."""

    results: tuple[BenchmarkResult, ...]
    names: tuple[str, ...]
    table: pd.DataFrame  # a line a run (but the first) and metric, see `compare`

    def plot(self) -> Figure:
        """The distributions of TTFT and TPOT, a curve a run: the share of requests that took no longer."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("ttft_s", "tpot_s"), strict=True):
            for name, result in zip(self.names, self.results, strict=True):
                values = np.sort(result.requests[metric].dropna().to_numpy())
                if len(values):
                    axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name)
            axes.set(xlabel=f"{metric[:-2].upper()} (s)", ylabel="share of requests", ylim=(0, 1))
            axes.grid(alpha=0.3)
        axes.legend()
        return figure

    def _repr_html_(self) -> str:
        return str(self.table.to_html(index=False))

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(self.names)}\n{self.table.to_string(index=False)}"


def compare(*results: BenchmarkResult, names: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Hold runs of one traffic against the first, request by request.

    The table has, for every other run and metric, both means in seconds, the mean difference with its 95 %
    interval, and whether that leaves out zero. The interval is a percentile bootstrap over paired requests
    (Efron and Tibshirani 1993, chapter 13): how sure the difference is for these requests on these two runs.
    Requests of one run wait for one another, so repeat runs before calling a small difference real.

    Args:
        results: at least two, of the same traffic.
        names: one each; by default "run 0", "run 1", …
        seed: of the resampling.

    Raises:
        ValueError: fewer than two, of different traffic, or as many names as there are not runs.
    """
    if len(results) < 2:
        raise ValueError(f"{len(results)} results: give at least two to compare")
    called = tuple(names or (f"run {number}" for number in range(len(results))))
    if len(called) != len(results):
        raise ValueError(f"{len(called)} names for {len(results)} results")
    for result in results[1:]:
        if result.traffic != results[0].traffic:
            raise ValueError(
                f"different traffic cannot be paired: {results[0].traffic.name!r} and {result.traffic.name!r}"
            )
    rng = np.random.default_rng(seed)
    rows = [
        {"run": name, "against": called[0], "metric": metric} | _paired(results[0], result, metric, rng)
        for name, result in zip(called[1:], results[1:], strict=True)
        for metric in TIMES
    ]
    return Comparison(tuple(results), called, pd.DataFrame(rows))


def _paired(
    first: BenchmarkResult, second: BenchmarkResult, metric: str, rng: np.random.Generator
) -> dict[str, Any]:
    before, after = (result.requests[metric].to_numpy(np.float64) for result in (first, second))
    both = ~(np.isnan(before) | np.isnan(after))
    before, after = before[both], after[both]
    if not len(before):
        nothing = float("nan")
        return dict.fromkeys(("mean_against", "mean", "difference", "low", "high"), nothing) | {
            "differs": False
        }
    difference = after - before
    picks = rng.integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[picks].mean(axis=1), [0.025, 0.975])
    return {
        "mean_against": before.mean(),
        "mean": after.mean(),
        "difference": difference.mean(),
        "low": low,
        "high": high,
        "differs": bool(low > 0 or high < 0),
    }
