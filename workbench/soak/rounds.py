"""Engines one after the other, each used for some seconds, then looked over and closed."""

from __future__ import annotations

import gc
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from workbench.bench.lora import write_adapter
from workbench.llm import LLM
from workbench.models.folder import resolve
from workbench.models.spec import read_spec
from workbench.params import LoRARequest
from workbench.soak.callers import Caller, Tally
from workbench.soak.cases import ADAPTERS, Case, draw_case
from workbench.soak.expected import Answer, Loras, expect
from workbench.soak.faults import FaultyRunner
from workbench.soak.memory import MIB, resident_mib
from workbench.soak.settings import RANK, draw_settings
from workbench.soak.slope import Slope, slope

CASES = 40  # requests with an answer, drawn once
ROUND_S = 10.0  # an engine is used for so long
PATIENCE_S = 120.0  # a caller that takes longer than this to end is stuck
FAULT_EVERY = 200  # steps, in the rounds that have faults
SETTLED = 3  # rounds until allocators have what they need
LEAK_MIB = 0.5  # a round; growth of less is not told from noise


class Stuck(RuntimeError):
    """Threads that do not end; the engine they use cannot be closed."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a soak found."""

    rounds: list[dict[str, Any]]  # a line each: settings, counts, memory at the end
    failures: list[str]  # in words
    memory: Slope | None  # MiB of the process's resident memory a round, once settled; None: too few rounds

    @property
    def total(self) -> Counter[str]:
        """Requests, tokens, refusals and so on of all rounds."""
        return sum((Counter(line["counts"]) for line in self.rounds), Counter())

    @property
    def leaks(self) -> bool:
        """Whether memory grows, beyond its noise and by more than half a MiB a round."""
        return self.memory is not None and self.memory.low > LEAK_MIB

    @property
    def passed(self) -> bool:
        return not self.failures and not self.leaks


class House(NamedTuple):
    """What all rounds have in common."""

    model: str
    device: str
    cases: list[Case]
    expected: list[list[Answer]]  # of each case
    lora: Loras
    threads: int


def soak(
    minutes: float,
    model: str,
    *,
    threads: int = 3,
    seed: int = 0,
    device: str = "cpu",
    round_s: float = ROUND_S,
    cases: int = CASES,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> Report:
    """Open engines with random settings and use each from several threads, for so many minutes.

    Args:
        minutes: of use; computing the expected answers comes before, closing after.
        model: a folder or zoo/<name>; in float32.
        threads: callers of one engine at a time, besides one that steps by hand.
        seed: of everything drawn; what threads do to one another is not repeated by it.
        device: cpu or cuda.
        round_s: seconds an engine is used.
        cases: different requests.
        told: called with each round's line when it ends.

    Raises:
        ValueError: minutes, threads or cases that are not positive.
        Stuck: callers that do not end; with the stacks of all threads.
    """
    for name, value in (("minutes", minutes), ("threads", threads), ("cases", cases), ("round_s", round_s)):
        if not value > 0:
            raise ValueError(f"{name} is {value}: use a positive number")
    rng = random.Random(seed)
    drawn = [draw_case(rng) for _ in range(cases)]
    lines: list[dict[str, Any]] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="workbench-soak-") as folder:
        lora = adapters(model, Path(folder))
        house = House(model, device, drawn, expect(model, drawn, device, lora), lora, threads)
        for line, found in _rounds(house, minutes, round_s, rng):
            lines.append(line)
            failures += found
            if told is not None:
                told(line)
    resident = [line["resident_mib"] for line in lines[SETTLED:]]
    return Report(lines, failures, None if None in resident else slope(resident))


def adapters(model: str, folder: Path) -> Loras:
    """Random adapters in a folder, by their numbers."""
    spec = read_spec(resolve(model))
    made: dict[int, LoRARequest | None] = {0: None}
    for number in range(1, ADAPTERS + 1):
        path = write_adapter(folder / str(number), spec, RANK, number)
        made[number] = LoRARequest(f"adapter {number}", number, str(path))
    return made


def _rounds(
    house: House, minutes: float, round_s: float, rng: random.Random
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Rounds until the time is over."""
    with tqdm(total=round(60 * minutes), desc="Soaking", unit="s") as bar:
        number, end = 0, time.monotonic() + 60 * minutes
        while (left := end - time.monotonic()) > 0:
            yield _round(number, house, min(round_s, left), rng)
            number += 1
            bar.update(min(bar.total, round(60 * minutes - max(0.0, end - time.monotonic()))) - bar.n)


def _round(number: int, house: House, seconds: float, rng: random.Random) -> tuple[dict[str, Any], list[str]]:
    """One engine's life: its line of the report, and what went wrong."""
    settings, faulty = draw_settings(rng), rng.random() < 0.4
    tally = Tally()
    llm = LLM(house.model, device=house.device, dtype="float32", **settings)
    runner = FaultyRunner(llm._engine.runner, random.Random(rng.random()), FAULT_EVERY)
    if faulty:
        llm._engine.runner = runner
    pairs = zip(house.cases, house.expected, strict=True)
    answerable = [(case, due) for case, due in pairs if "enable_lora" in settings or not case.adapter]
    callers = [
        Caller(llm, answerable, house.lora, tally, random.Random(rng.random()), faulty)
        for _ in range(house.threads + 1)
    ]
    until = time.monotonic() + seconds
    _run([callers[0].by_hand, *(caller.run for caller in callers[1:])], until)
    for what in left_behind(llm):
        tally.fail(what)
    llm.close()
    del llm, runner, callers
    gc.collect()
    line = {
        "round": number,
        "settings": settings | {"faults": faulty},
        "counts": dict(tally.counts),
        "resident_mib": resident_mib(),
        "device_mib": torch.cuda.memory_allocated() / MIB if house.device == "cuda" else 0.0,
    }
    return line, [f"round {number}, {settings}: {failure}" for failure in tally.failures]


def _run(calls: list[Callable[[float], None]], until: float) -> None:
    """All at once, each in a thread, until they end."""
    running = [threading.Thread(target=call, args=(until,), daemon=True) for call in calls]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(max(0.0, until - time.monotonic()) + PATIENCE_S)
    if stuck := [thread for thread in running if thread.is_alive()]:
        frames = sys._current_frames()
        stacks = ("".join(traceback.format_stack(frames[thread.ident or 0])) for thread in stuck)
        raise Stuck(f"{len(stuck)} of {len(running)} callers do not end:\n" + "\n".join(stacks))


def left_behind(llm: LLM) -> list[str]:
    """What is still in an engine that nobody uses any more, in words: blocks, requests, rows of the batch."""
    engine = llm._engine
    with engine.turn:
        engine.drain()
        scheduler = engine.scheduler
        scheduler.check()
        found = []
        if held := scheduler.cache.pool.num_held:
            found.append(f"{held} blocks are held by nobody")
        if scheduler.has_work or llm.has_unfinished_requests():
            found.append("requests are left in the engine")
        if (rows := scheduler.limits.max_rows - scheduler.running.num_free_rows) != 0:
            found.append(f"{rows} batch rows are lost")
        return found
