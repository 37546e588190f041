"""What a load left behind: a line a request, a line a step, figures; saved with all it takes to repeat it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.bench.traffic import Traffic

VERSION = 1  # of the files
METRICS = ("queue_s", "ttft_s", "itl_s", "tpot_s", "e2e_s")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BenchmarkResult:
    """One run of some traffic through one engine.

    Its tables are pandas': `requests`, a line a request in the order of the traffic, with the columns of the
    trace's table of that name but for the texts; `steps`, the trace's; `summary`, below.
    """

    traffic: Traffic
    about: dict[str, Any]  # settings, versions, device, commit, date
    requests: pd.DataFrame
    steps: pd.DataFrame
    itl_s: np.ndarray[Any, np.dtype[np.float64]]  # [gaps] seconds from a token of a request to its next

    @property
    def seconds(self) -> float:
        """From the first arrival to the last end."""
        return float(self.requests["finished_s"].max() - self.requests["arrived_s"].min())

    @property
    def summary(self) -> pd.DataFrame:
        """Seconds: a line each for queue, TTFT, ITL, TPOT and e2e, with mean, p50, p90 and p99.

        TTFT, TPOT and e2e are of requests, ITL of gaps between tokens; as vLLM's benchmarks call them.
        """
        columns = {name: self.itl_s if name == "itl_s" else self.requests[name].dropna() for name in METRICS}
        lines = {
            name: {"mean": np.mean(values)} | {key: np.quantile(values, q) for key, q in QUANTILES.items()}
            for name, values in columns.items()
            if len(values)
        }
        return pd.DataFrame.from_dict(lines, orient="index").rename_axis("metric")

    @property
    def figures(self) -> dict[str, float]:
        """One number each, of the whole run."""
        asked, steps = self.requests, self.steps
        blocks = (steps["blocks_held"] + steps["blocks_free"]).clip(lower=1)
        used = steps["blocks_held"] / blocks
        prompts = int(asked["prompt_tokens"].sum())
        return {
            "requests": len(asked),
            "seconds": self.seconds,
            "requests_per_s": len(asked) / self.seconds,
            "in_tokens_per_s": prompts / self.seconds,
            "out_tokens_per_s": float(asked["output_tokens"].sum()) / self.seconds,
            "hit_rate": float(asked["cached_tokens"].sum()) / prompts,  # of prompt tokens
            "kv_use_mean": float(used.mean()),  # of the blocks, over steps
            "kv_use_max": float(used.max()),
            "preemptions": int(asked["preemptions"].sum()),
            "steps": len(steps),
        }

    def goodput(self, **most: float) -> float:
        """Requests a second that kept to all limits: `goodput(ttft_s=0.2, tpot_s=0.05)`.

        Raises:
            ValueError: a limit on something that is not a time of a request; the message names those.
        """
        times = [name for name in METRICS if name != "itl_s"]
        if unknown := sorted(set(most) - set(times)):
            raise ValueError(f"no limit on {unknown[0]!r}: use {', '.join(times)}")
        kept = pd.Series(True, index=self.requests.index)
        for name, limit in most.items():
            kept &= ~(self.requests[name] > limit)  # a request of one token has no tpot_s, and keeps to any
        return float(kept.sum()) / self.seconds

    def save(self, folder: str | Path) -> Path:
        """Write the run into a folder, which is made; all of it or nothing. Returns the folder.

        Raises:
            OSError: it is there already, or cannot be written.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} is there already: remove it, or choose another")
        beside = folder.with_name(f".{folder.name}.{os.getpid()}")
        beside.mkdir(parents=True)
        try:
            about = {"version": VERSION, "about": self.about, "traffic": self.traffic._asdict()}
            (beside / "run.json").write_text(json.dumps(about), encoding="utf-8")
            self.requests.to_csv(beside / "requests.csv", index=False)
            self.steps.to_csv(beside / "steps.csv", index=False)
            pd.DataFrame({"itl_s": self.itl_s}).to_csv(beside / "itl.csv", index=False)
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> BenchmarkResult:
        """Read what `save` wrote.

        Raises:
            ValueError: it is not such a folder, or one of another version.
            OSError: there is none.
        """
        folder = Path(folder)
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        if not isinstance(about, dict) or about.get("version") != VERSION:
            found = about.get("version") if isinstance(about, dict) else None
            raise ValueError(f"{folder} is of version {found}, this reads {VERSION}: run the benchmark again")
        said = about["traffic"]
        traffic = Traffic(
            said["name"], tuple(said["at_s"]), tuple(map(tuple, said["prompts"])), tuple(said["outs"])
        )
        tables = [pd.read_csv(folder / f"{name}.csv") for name in ("requests", "steps", "itl")]
        return cls(traffic, about["about"], tables[0], tables[1], tables[2]["itl_s"].to_numpy(np.float64))

    def _repr_html_(self) -> str:
        figures = pd.DataFrame([self.figures])
        return f"<p>{self!r}</p>{figures.to_html(index=False)}{self.summary.to_html()}"

    def __repr__(self) -> str:
        figures = self.figures
        return (
            f"BenchmarkResult({figures['requests']} requests in {figures['seconds']:.3g} s, "
            f"{figures['out_tokens_per_s']:,.0f} output tokens/s, hit rate {figures['hit_rate']:.1%})"
        )
