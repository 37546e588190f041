"""Benchmarks. Each command measures one thing, prints a table, and can leave rows and one JSON object behind.

For notebooks: `Traffic` made by `drawn`, `conversations` or `replayed` is sent through an engine by `run`,
which gives a `BenchmarkResult`; `compare` holds several against one another, `sweep` tries settings. Names
load when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import loads_lazily

if TYPE_CHECKING:
    from workbench.bench.comparing import Comparison, compare
    from workbench.bench.load import run
    from workbench.bench.result import BenchmarkResult
    from workbench.bench.sweeping import sweep
    from workbench.bench.traffic import (
        Traffic,
        at_once,
        bursts,
        conversations,
        drawn,
        poisson,
        replayed,
        shareable_tokens,
    )
    from workbench.bench.workloads import Fixed, LogNormal, Uniform

__all__ = [
    "BenchmarkResult",
    "Comparison",
    "Fixed",
    "LogNormal",
    "Traffic",
    "Uniform",
    "at_once",
    "bursts",
    "compare",
    "conversations",
    "drawn",
    "poisson",
    "replayed",
    "run",
    "shareable_tokens",
    "sweep",
]

_HOMES = {
    **dict.fromkeys(("Comparison", "compare"), "workbench.bench.comparing"),
    **dict.fromkeys(("Fixed", "LogNormal", "Uniform"), "workbench.bench.workloads"),
    **dict.fromkeys(
        (
            "Traffic",
            "at_once",
            "bursts",
            "conversations",
            "drawn",
            "poisson",
            "replayed",
            "shareable_tokens",
        ),
        "workbench.bench.traffic",
    ),
    "BenchmarkResult": "workbench.bench.result",
    "run": "workbench.bench.load",
    "sweep": "workbench.bench.sweeping",
}

__getattr__, __dir__ = loads_lazily(__name__, _HOMES)
