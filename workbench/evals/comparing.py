"""How sure a score is, and whether two evaluations of the same samples differ."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from workbench.models.zoo.score import wilson

RESAMPLES = 2000
LEVEL = 0.05  # a difference is one where nothing as large comes by chance once in twenty


def summarize(rows: pd.DataFrame, by: str = "task", seed: int = 0) -> pd.DataFrame:
    """The mean score of each task, with its 95 % interval.

    Wilson's (1927) where scores are right or wrong; else a percentile bootstrap over samples (Efron and
    Tibshirani 1993, chapter 13). Of perplexities the mean is geometric, weighted by tokens: that of all the
    text together.

    Args:
        rows: of `evaluate`.
        by: the column to group by besides the task: "task" for none, or "kind".
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    keys = ["task"] if by == "task" else ["task", by]
    found = []
    for key, group in rows.groupby(keys, sort=False):
        named = dict(zip(keys, key if isinstance(key, tuple) else (key,), strict=True))
        found.append(named | {"metric": group["metric"].iloc[0], "n": len(group)} | _interval(group, rng))
    return pd.DataFrame(found)


def _interval(group: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    scores = group["score"].to_numpy(np.float64)
    if group["metric"].iloc[0] == "perplexity":
        costs, tokens = -group["logprob"].to_numpy(np.float64), group["output_tokens"].to_numpy(np.float64)
        picks = rng.integers(0, len(costs), (RESAMPLES, len(costs)))
        drawn = np.exp(costs[picks].sum(axis=1) / tokens[picks].sum(axis=1))
        return _bounded(math.exp(costs.sum() / tokens.sum()), drawn)
    if set(scores) <= {0.0, 1.0}:
        low, high = wilson(int(scores.sum()), len(scores))
        return {"score": float(scores.mean()), "low": low, "high": high}
    picks = rng.integers(0, len(scores), (RESAMPLES, len(scores)))
    return _bounded(float(scores.mean()), scores[picks].mean(axis=1))


def _bounded(score: float, drawn: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"score": score, "low": float(low), "high": float(high)}


def compare(first: pd.DataFrame, second: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Two evaluations of the same samples, paired; a line a task.

    The mean difference (second - first) with its 95 % interval by a percentile bootstrap over paired samples.
    Where scores are right or wrong, `p` is McNemar's exact test on the samples that only one got right
    (McNemar 1947; two-sided binomial); else the share of resamples on the other side of zero, twice.
    `differs` is p < 0.05. Of perplexities the logarithms are compared.

    Raises:
        ValueError: the two are not of the same tasks and samples.
    """
    keys = ["task", "index"]
    one, other = (rows.set_index(keys) for rows in (first, second))
    if not one.index.equals(other.index) or not (one["prompt"] == other["prompt"]).all():
        raise ValueError(
            f"different samples cannot be paired: {_told(first)} and {_told(second)}; evaluate the same tasks"
        )
    rng = np.random.default_rng(seed)
    lines = []
    for task, group in one.groupby(level="task", sort=False):
        again = other.loc[group.index]
        lines.append({"task": task, "n": len(group)} | _paired(group, again, rng))
    return pd.DataFrame(lines)


def _paired(first: pd.DataFrame, second: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    before, after = (rows["score"].to_numpy(np.float64) for rows in (first, second))
    if first["metric"].iloc[0] == "perplexity":
        before, after = np.log(before), np.log(after)
    difference = after - before
    means = difference[rng.integers(0, len(difference), (RESAMPLES, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    p = _p_of(before, after, means)
    return {
        "score_first": float(first["score"].mean()),
        "score_second": float(second["score"].mean()),
        "only_first": int((before > after).sum()),
        "only_second": int((after > before).sum()),
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "p": p,
        "differs": p < LEVEL,
    }


def _p_of(before: Any, after: Any, means: Any) -> float:
    if set(before) | set(after) <= {0.0, 1.0}:
        return mcnemar(int((before > after).sum()), int((after > before).sum()))
    return float(min(1.0, 2 * min((means <= 0).mean(), (means >= 0).mean())))


def mcnemar(only_first: int, only_second: int) -> float:
    """How often chance alone parts so many pairs at least as unevenly (exact, two-sided)."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)


def _told(rows: pd.DataFrame) -> str:
    counts = rows.groupby("task", sort=False).size()
    return ", ".join(f"{count} of {name}" for name, count in counts.items())
