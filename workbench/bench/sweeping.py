"""One traffic through engines of all combinations of some settings, each kept as it ends."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from workbench.bench.load import run
from workbench.bench.result import BenchmarkResult
from workbench.bench.traffic import Traffic
from workbench.llm import LLM

Settings = dict[str, Any]


def sweep(
    model: str | None,
    traffic: Traffic,
    folder: str | Path,
    *,
    fixed: Settings | None = None,
    use_tqdm: bool = True,
    **grid: Sequence[Any],
) -> pd.DataFrame:
    """Run traffic on every combination: `sweep("zoo/wren-8m", t, "out", max_num_batched_tokens=[64, 512])`.

    What has ended is in `folder`, a run each; called again, only what is missing is run.

    Args:
        model: as LLM takes it.
        traffic: the same for all.
        folder: where runs are kept; those of another traffic, model or setting there are left alone.
        fixed: arguments of LLM that all have in common.
        use_tqdm: whether a bar counts the runs.
        grid: arguments of LLM, each with the values to try.

    Returns:
        A line a combination: its settings, its figures, and the mean and p99 of its TTFT and TPOT in seconds.

    Raises:
        ValueError: nothing to vary, or a value that is no sequence; and as LLM and `run`.
    """
    combinations = list(combinations_of(grid))
    rows = []
    for settings in tqdm(combinations, desc="Sweep", unit="run", disable=not use_tqdm):
        path = Path(folder) / _key(model, traffic, (fixed or {}) | settings)
        if not path.exists():
            with LLM(model, **((fixed or {}) | settings)) as llm:
                run(llm, traffic, use_tqdm=False).save(path)
        rows.append(settings | _line(BenchmarkResult.load(path)))
    return pd.DataFrame(rows)


def combinations_of(grid: dict[str, Sequence[Any]]) -> Iterator[Settings]:
    """Every choice of one value each, the last setting changing first."""
    if not grid:
        raise ValueError("nothing to vary: name a setting of LLM with the values to try")
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{name} is {values!r}: give a list of the values to try")
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _key(model: str | None, traffic: Traffic, settings: Settings) -> str:
    said = json.dumps([model, settings, traffic._asdict()], sort_keys=True, default=repr)
    return f"run-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _line(result: BenchmarkResult) -> dict[str, float]:
    summary = result.summary
    times = {
        f"{metric[:-2]}_{statistic}_s": float(summary.loc[metric, statistic])
        for metric in ("ttft_s", "tpot_s")
        for statistic in ("mean", "p99")
        if metric in summary.index
    }
    return result.figures | times
