"""Our task files as tasks of lm_eval: the same questions, put by its harness. Knows its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.evals.tasks import Task, write_task

MAX_GEN_TOKS = 32  # tokens of an answer; the zoo's right ones are shorter


def lm_eval_task(task: Task, folder: str | Path) -> dict[str, Any]:
    """A task for `lm_eval.simple_evaluate(tasks=[...])`, its questions in a file of the folder.

    Of the metrics, `exact` becomes generate_until with exact_match, `choice` multiple_choice, and
    `perplexity` loglikelihood_rolling over prompt and completion together.

    Raises:
        ValueError: lm_eval has no such measure.
    """
    ways = {"exact": _generation, "choice": _choice, "perplexity": _rolling}
    if task.metric not in ways:
        raise ValueError(f"lm_eval has no measure for {task.metric!r}: use `evaluate` for task {task.name!r}")
    file = write_task(task, Path(folder) / f"{task.name}.jsonl")
    data = {"data_files": {"test": str(file)}, "cache_dir": str(Path(folder) / "cache")}
    return {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": data,
        "test_split": "test",
        "target_delimiter": "",  # a completion begins with its own space
        **ways[task.metric](task),
    }


def _generation(task: Task) -> dict[str, Any]:
    asked = {"until": list(task.stop), "do_sample": False, "max_gen_toks": MAX_GEN_TOKS}
    blanks = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    return {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{completion.strip()}}",
        "generation_kwargs": asked,
        "filter_list": [{"name": "none", "filter": blanks}],
        "metric_list": [{"metric": "exact_match"}],
    }


def _choice(task: Task) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "{{choices.index(completion)}}",
        "metric_list": [{"metric": "acc"}],
    }


def _rolling(task: Task) -> dict[str, Any]:
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{prompt + completion}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
