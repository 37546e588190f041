"""`workbench eval run` and `workbench eval write`: task files from the shell."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.bench.rows import append
from workbench.console import format_table, say
from workbench.evals.comparing import compare, summarize
from workbench.evals.evaluating import evaluate
from workbench.evals.tasks import Task, read_task, write_task
from workbench.evals.zoo_tasks import MAKERS, zoo_task
from workbench.llm import LLM

COLUMNS = ("model", "task", "kind", "metric", "n", "score", "low", "high")


def write(folder: Path, names: list[str], n: int, seed: int) -> None:
    """Tasks of the zoo's generator as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        task = zoo_task(name, n, seed)
        say(f"wrote {write_task(task, folder / f'{name}.jsonl')}: {len(task.samples)} samples, {task.metric}")


def run(arguments: argparse.Namespace) -> int:
    """Every file through every model; scores with intervals, and whether the models differ."""
    tasks = [read_task(path, arguments.metric, limit=arguments.limit) for path in arguments.files]
    found = {model: _evaluated(model, tasks, arguments) for model in arguments.model}
    rows = [row for model, table in found.items() for row in summary_rows(model, table)]
    say(*format_table(COLUMNS, [list(row.values()) for row in rows]))
    differences = _against_the_first(found)
    for line in differences:
        told = "differs" if line["differs"] else "no difference seen"
        say(
            f"{line['task']}, {line['model']} - {line['base']}: {line['difference']:+.4f} "
            f"[{line['low']:+.4f}, {line['high']:+.4f}], p = {line['p']:.3g}: {told}"
        )
    if arguments.output:
        append(arguments.output, rows)
    if arguments.json:
        say(json.dumps({"rows": rows, "differences": differences}))
    return 0


def _evaluated(model: str, tasks: list[Task], arguments: argparse.Namespace) -> pd.DataFrame:
    keep = arguments.keep / f"{model.replace('/', '-')}.jsonl" if arguments.keep else None
    with LLM(model, device=arguments.device) as llm:
        return evaluate(llm, tasks, keep=keep)


def summary_rows(model: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a task, and one a kind where a task has several; kind `all` is all of them."""
    whole = summarize(table).assign(kind="all")
    kinds = summarize(table, by="kind")
    several = kinds[kinds.groupby("task")["kind"].transform("size") > 1]
    rows = pd.concat([whole, several], ignore_index=True).assign(model=model)
    rows[["score", "low", "high"]] = rows[["score", "low", "high"]].round(4)
    return rows[list(COLUMNS)].to_dict("records")


def _against_the_first(found: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    base, *others = found
    return [
        {"base": base, "model": other} | line
        for other in others
        for line in compare(found[base], found[other]).to_dict("records")
    ]


def add_commands(commands: Any) -> None:
    """The two commands' parsers."""
    about = "task files (JSON Lines) through one model or several: scores with 95 %% intervals, differences"
    one = commands.add_parser("run", help=about, description=about)
    one.add_argument("files", type=Path, nargs="+", metavar="FILE")
    one.add_argument("--model", nargs="+", default=["zoo/wren-8m"], help="zoo/<name>, a folder or a hub id")
    one.add_argument("--metric", help="exact, choice, json or perplexity; default: what the file says")
    one.add_argument("--limit", type=int, metavar="N", help="only the first N lines of each file")
    one.add_argument(
        "--keep", type=Path, metavar="DIR", help="rows as they come, a file a model; goes on where it stopped"
    )
    one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    one.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    one.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to a CSV file")
    one.set_defaults(run=run)
    about = "write tasks of the zoo's generator as JSON Lines"
    other = commands.add_parser("write", help=about, description=about)
    other.add_argument("folder", type=Path, metavar="DIR")
    other.add_argument("--tasks", nargs="+", default=list(MAKERS), metavar="TASK", help=", ".join(MAKERS))
    other.add_argument("-n", type=int, default=60, help="samples a task (default 60)")
    other.add_argument("--seed", type=int, default=0)
    other.set_defaults(run=_write)


def _write(arguments: argparse.Namespace) -> int:
    write(arguments.folder, arguments.tasks, arguments.n, arguments.seed)
    return 0
