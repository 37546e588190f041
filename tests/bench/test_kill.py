"""kill -9 amid a sweep and an evaluation: what had ended is there, and the rerun does the rest."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from workbench import LLM
from workbench.bench import Traffic, sweep, sweeping
from workbench.evals import evaluate, evaluating
from workbench.evals.tasks import Task
from workbench.evals.zoo_tasks import zoo_task

MODEL = "zoo/wren-1m"
BUDGETS = [16, 32, 48, 64, 96, 128]
MANY = 80  # questions
# Both at once, in a process that would go on for long after it has been killed.
SCRIPT = """
import threading
from pathlib import Path
from tests.bench.test_kill import BUDGETS, MODEL, questions, traffic
from workbench import LLM
from workbench.bench import sweep
from workbench.evals import evaluate, evaluating

folder = Path({folder!r})
evaluating.AT_ONCE = 4
grid = dict(fixed={fixed!r}, use_tqdm=False, max_num_batched_tokens=BUDGETS)
swept = threading.Thread(target=lambda: sweep(MODEL, traffic(), folder / "runs", **grid))
with LLM(MODEL, device="cpu") as llm:
    swept.start()
    evaluate(llm, questions(), keep=folder / "rows.jsonl", use_tqdm=False)
swept.join()
"""
FIXED = {"device": "cpu", "max_model_len": 128}


def traffic() -> Traffic:
    prompts = tuple(tuple(range(5 + n, 25 + n)) for n in range(6))
    return Traffic("six", (0.0,) * 6, prompts, (30,) * 6)


def questions() -> Task:
    return zoo_task("arithmetic", MANY)


def test_what_had_ended_before_a_kill_is_there_and_the_rest_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, rows = tmp_path / "runs", tmp_path / "rows.jsonl"
    script = SCRIPT.format(folder=str(tmp_path), fixed=FIXED)
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    patience = time.monotonic() + 100
    while not (runs.is_dir() and saved(runs) and rows.exists() and len(rows.read_text().splitlines()) > 4):
        assert child.poll() is None, "it has ended by itself"
        assert time.monotonic() < patience
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL

    before = saved(runs)
    ran: list[Any] = []
    real = sweeping.run
    monkeypatch.setattr(
        sweeping, "run", lambda *given, **named: (ran.append(given), real(*given, **named))[1]
    )
    table = sweep(MODEL, traffic(), runs, fixed=FIXED, use_tqdm=False, max_num_batched_tokens=BUDGETS)
    assert list(table["max_num_batched_tokens"]) == BUDGETS
    assert set(table["requests"]) == {6}
    assert len(ran) == len(BUDGETS) - len(before) < len(BUDGETS)
    assert {name: saved(runs)[name] for name in before} == before

    kept = [json.loads(line) for line in rows.read_text().rpartition("\n")[0].splitlines()[1:]]
    assert 0 < len(kept) < MANY
    asked: list[int] = []
    ask = evaluating._ask
    monkeypatch.setattr(
        evaluating,
        "_ask",
        lambda llm, task, which, *more: (asked.extend(which), ask(llm, task, which, *more))[1],
    )
    with LLM(MODEL, device="cpu") as llm:
        found = evaluate(llm, questions(), keep=rows, use_tqdm=False)
    assert sorted(asked + [row["index"] for row in kept]) == list(range(MANY))
    assert list(found["index"]) == list(range(MANY))
    assert list(found["output"])[: len(kept)] == [row["output"] for row in kept]


def saved(runs: Path) -> dict[str, bytes]:
    """The runs that are there, by their folders."""
    return {path.name: (path / "run.json").read_bytes() for path in runs.glob("run-*")}
