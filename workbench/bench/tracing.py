"""What observing costs: the same load unobserved, with the default ring, recorded, and recorded to disk.

Every round runs all of them, in an order that turns from round to round, so that what else the machine does
falls on each alike. Unobserved runs twice: how far its two ratios are apart is the noise. Beside the
throughput of a whole engine stand the microseconds of plan + commit with no model behind them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from workbench.bench import scheduler
from workbench.bench.throughput import Load, make_prompts
from workbench.bench.workloads import MODELS, model_folder
from workbench.engine.events import Observer
from workbench.llm import LLM
from workbench.models.zoo.registry import DEFAULT
from workbench.params import SamplingParams
from workbench.trace import Trace
from workbench.trace.journal import FILE

OFF = "off"
MODES = (OFF, "off_again", "ring", "record", "record_path")
HOST_STEPS = 128  # a round

Row = dict[str, Any]


def measure(model: str | None, load: Load, rounds: int) -> tuple[list[Row], Row]:
    """Output tokens a second in every way, every round with new prompts; ratios are medians over rounds."""
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
            _run(llm, OFF, load, 999, Path(scratch))
            for number in tqdm(range(rounds), desc="Measuring", unit="round"):
                turn = number % len(MODES)
                for mode in MODES[turn:] + MODES[:turn]:
                    rows.append(_run(llm, mode, load, number, Path(scratch)))
    return _with_ratios(rows), _summary(rows, rounds)


def _run(llm: LLM, mode: str, load: Load, number: int, scratch: Path) -> Row:
    prompts = make_prompts(load, 1000, number)
    params = SamplingParams(temperature=0, max_tokens=load.out, ignore_eos=True)
    llm.reset_prefix_cache()
    folder = scratch / f"{number}"
    with _observed(llm, mode, folder):
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    assert tokens == load.requests * load.out, f"{mode}: {tokens} tokens were generated"
    written = (folder / FILE).stat().st_size if mode == "record_path" else 0
    return {"mode": mode, "round": number, "seconds": round(seconds, 4),
            "out_tokens_per_s": round(tokens / seconds, 1), "bytes": written}  # fmt: skip


@contextmanager
def _observed(llm: LLM, mode: str, folder: Path) -> Iterator[None]:
    """The engine as `mode` says; afterwards with its ring again."""
    if mode in ("ring", "record", "record_path"):
        if mode == "ring":
            yield
            return
        with llm.trace.record(folder if mode == "record_path" else None):
            yield
        return
    llm._emit.remove(llm.trace.observer)
    try:
        yield
    finally:
        llm._emit.add(llm.trace.observer)


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Each row's rate over that of the same round unobserved."""
    unobserved = {row["round"]: row["out_tokens_per_s"] for row in rows if row["mode"] == OFF}
    for row in rows:
        row["ratio"] = round(row["out_tokens_per_s"] / unobserved[row["round"]], 4)
    return rows


def _summary(rows: list[Row], rounds: int) -> Row:
    summary: Row = {"rounds": rounds}
    for mode in MODES:
        mine = [row for row in rows if row["mode"] == mode]
        summary[f"{mode}_tokens_per_s"] = round(statistics.median(row["out_tokens_per_s"] for row in mine), 1)
        summary[f"{mode}_ratio"] = round(statistics.median(row["ratio"] for row in mine), 4)
    return summary


# --- without a model ------------------------------------------------------------------------------------


def measure_host(running: Sequence[int], rounds: int) -> Row:
    """Microseconds of a steady step (plan + commit) in every way, by the number of running requests."""
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        turn = number % len(MODES)
        for mode in MODES[turn:] + MODES[:turn]:
            for count in running:
                with _observers(mode) as observers:
                    (cost,) = scheduler.measure((count,), HOST_STEPS, observers=observers)
                found.setdefault(f"step_us_{count}_{mode}", []).append(cost.step_us_mean)
    return {name: round(statistics.median(found[name]), 1) for name in sorted(found, key=_by_count)}


def _by_count(name: str) -> tuple[int, int]:
    count, _, mode = name.removeprefix("step_us_").partition("_")
    return int(count), MODES.index(mode)


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
