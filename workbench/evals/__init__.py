"""Evaluations: what a model gets right, measured through the engine that serves it.

    rows = evaluate(llm, read_task("questions.jsonl"))      # a row a sample
    summarize(rows)                                         # scores with intervals
    compare(rows, evaluate(other, ...))                     # paired: is the difference one?

The zoo's generator has tasks for every measure (`zoo_tasks`); datasets/evals holds them as files. Other
people's harnesses take the engine as their model: lm_eval (`lm_eval_model`), inspect_ai (`inspect_provider`).
Names load when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import loads_lazily

if TYPE_CHECKING:
    from workbench.evals.comparing import compare, summarize
    from workbench.evals.evaluating import evaluate
    from workbench.evals.tasks import Sample, Task, make_task, read_task

__all__ = ["Sample", "Task", "compare", "evaluate", "make_task", "read_task", "summarize"]

_HOMES = {
    **dict.fromkeys(("compare", "summarize"), "workbench.evals.comparing"),
    "evaluate": "workbench.evals.evaluating",
    **dict.fromkeys(("Sample", "Task", "make_task", "read_task"), "workbench.evals.tasks"),
}

__getattr__, __dir__ = loads_lazily(__name__, _HOMES)
