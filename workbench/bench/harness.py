"""lm_eval's multiple choice through the engine, against lm_eval's own `hf` model at its best batch size.

The questions are `continuations` of workbench/evals/zoo_tasks.py: a context of about 400 tokens, four choices
of about 20. What is timed is lm_eval's `evaluate`, which puts the questions and scores the answers; loading
the models is not. Both compute in float32 with torch's threads as they are set.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.bench.provenance import provenance, version
from workbench.evals.lm_eval_model import WorkbenchLM
from workbench.evals.lm_eval_tasks import lm_eval_task
from workbench.evals.zoo_tasks import zoo_task
from workbench.llm import LLM
from workbench.models.folder import resolve

SHOWN = ("engine", "batch_size", "questions", "seconds", "accuracy", "ratio")

Row = dict[str, Any]


class Options(NamedTuple):
    """What is measured."""

    model: str
    questions: int
    batch_sizes: Sequence[int]  # of `hf`, tried on a part of the questions
    tried: int  # questions of that part
    rounds: int  # of all questions, both models in turn
    seed: int


class _Run(NamedTuple):
    seconds: float
    accuracy: float
    logprobs: list[float]  # of every choice of every question


def measure(options: Options) -> tuple[list[Row], Row]:
    """A row a model, the median of its rounds; how far their logprobs are apart.

    Raises:
        ValueError: no questions, rounds or batch sizes.
        MissingExtra: lm_eval or accelerate is not installed.
    """
    if min(options.questions, options.tried, options.rounds, *options.batch_sizes) < 1:
        raise ValueError("questions, --tried, --rounds and --batch-sizes count from 1")
    with tempfile.TemporaryDirectory() as folder, LLM(options.model, device="cpu") as llm:
        ours, theirs = WorkbenchLM(llm), _hf(options.model)
        part = _task(min(options.tried, options.questions), options.seed, Path(folder) / "part")
        whole = _task(options.questions, options.seed, Path(folder) / "whole")
        _ask(ours, part)  # both have been warm by then
        tried = {size: _ask(theirs, part, size).seconds for size in options.batch_sizes}
        best = min(tried, key=lambda size: tried[size])
        hf, workbench = [], []
        for _ in range(options.rounds):
            hf.append(_ask(theirs, whole, best))
            llm.reset_prefix_cache()
            workbench.append(_ask(ours, whole))
        device = llm.config.device_name
    return _rows(options, device, best, hf, workbench), _summary(tried, hf[0], workbench[0])


def _rows(options: Options, device: str, best: int, hf: list[_Run], workbench: list[_Run]) -> list[Row]:
    origin = provenance(device) | {"lm_eval": version("lm_eval"), "transformers": version("transformers")}
    slow = _median(hf)
    return [
        origin
        | {"model": options.model, "engine": name, "batch_size": size, "questions": options.questions}
        | {"rounds": options.rounds, "seconds": round(_median(runs), 2), "accuracy": runs[0].accuracy}
        | {"ratio": round(slow / _median(runs), 3), "all_seconds": " ".join(f"{r.seconds:.2f}" for r in runs)}
        for name, size, runs in (("hf", best, hf), ("workbench", "", workbench))
    ]


def _summary(tried: dict[int, float], hf: _Run, workbench: _Run) -> Row:
    apart = max(abs(one - other) for one, other in zip(hf.logprobs, workbench.logprobs, strict=True))
    return {
        "hf_seconds_by_batch_size": {size: round(seconds, 2) for size, seconds in tried.items()},
        "largest_difference_of_logprobs": float(f"{apart:.3g}"),
    }


def _median(runs: list[_Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def _hf(model: str) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(resolve(model)), device="cpu", dtype="float32", batch_size=1)


def _task(questions: int, seed: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return lm_eval_task(zoo_task("continuations", questions, seed), folder)


def _ask(model: Any, task: dict[str, Any], batch_size: int | None = None) -> _Run:
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    if batch_size is not None:
        model.batch_size_per_gpu = batch_size
    loaded = TaskManager(include_defaults=False).load([dict(task)])["tasks"]
    began = time.perf_counter()
    found = evaluate(model, loaded, bootstrap_iters=0)
    seconds = time.perf_counter() - began
    samples = found["samples"][task["task"]]
    logprobs = [float(choice[0][0]) for sample in samples for choice in sample["resps"]]
    return _Run(seconds, float(found["results"][task["task"]]["acc,none"]), logprobs)
