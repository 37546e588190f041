"""What observing costs: the same load unobserved, with the default ring, recorded, and recorded to disk.

Every round runs each way right beside a run that nobody observes, before it in one round and behind it in the
next, and the ratio of the two counts: what else the machine does falls on both alike. Over many short rounds
the median of the ratios is told, with the interval that holds it in 19 of 20 cases and the middle half of the
ratios. One way is to observe nothing again: its ratios are the noise. Beside the throughput of a whole engine
stand the microseconds of plan + commit with no model behind them.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from workbench.bench import scheduler
from workbench.bench.pairs import pair, speed, summary
from workbench.bench.provenance import provenance
from workbench.bench.throughput import Load
from workbench.bench.workloads import MODELS, model_folder
from workbench.engine.events import Observer
from workbench.llm import LLM
from workbench.models.zoo.registry import DEFAULT
from workbench.trace import Trace
from workbench.trace.journal import FILE

OFF = "off"
MODES = ("off_again", "ring", "record", "record_path")
HOST_STEPS = 640  # a round: what is written many at once has to come often enough to be seen
MOST_HOST_ROUNDS = 5
SHOWN = ("mode", "round", "off_tokens_per_s", "out_tokens_per_s", "ratio", "bytes")

Row = dict[str, Any]


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
            with _observed(llm, OFF, Path(scratch)):
                speed(llm, load, 999)
            for number in tqdm(range(rounds), desc="Measuring", unit="round"):
                turn = number % len(MODES)
                for mode in MODES[turn:] + MODES[:turn]:
                    rows.append(origin | _pair(llm, mode, load, number, Path(scratch)))
            return rows, {"engine": repr(llm), "rounds": rounds} | summary(rows, MODES)


def _pair(llm: LLM, mode: str, load: Load, number: int, scratch: Path) -> Row:
    """A way of observing and, right beside it, none."""
    folder = scratch / f"{number}"

    def run(way: str) -> float:
        with _observed(llm, way, folder):
            return speed(llm, load, number)

    row = pair(OFF, mode, number, run)
    return row | {"bytes": (folder / FILE).stat().st_size if mode == "record_path" else 0}


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
