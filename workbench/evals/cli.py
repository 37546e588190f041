"""`workbench eval NAME`: what a model or a grammar backend gets right, as a table, rows (-o) and --json."""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.bench.provenance import provenance
from workbench.bench.rows import ORIGIN, append
from workbench.console import format_table, say
from workbench.models.zoo import registry
from workbench.models.zoo.corpus import tasks

ABOUT = ("model", "seed", "dtype")  # columns of the file beside those of the table
COLUMNS = ("task", "kind", "n", "right", "accuracy", "low", "high", "perplexity")

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run one evaluation; 0 when it ran to its end."""
    if argv and argv[0] == "lm_eval":  # a harness with a parser of its own
        return _lm_eval(argv[1:])
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench eval", description="Measure what a model gets right.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    about = "a zoo model on held-out items of its tasks: greedy, exact match, 95 %% Wilson intervals"
    zoo = commands.add_parser("zoo", help=about, description=about)
    zoo.add_argument(
        "model", nargs="?", default=registry.DEFAULT, help="an embedded model's name, or a folder"
    )
    zoo.add_argument("--adapter", help="an embedded adapter's name, or a folder; with tasks of its own")
    zoo.add_argument("-n", type=int, default=500, help="items a task, shared among its kinds (default 500)")
    zoo.add_argument("--tasks", nargs="+", default=list(tasks.NAMES), metavar="TASK")
    zoo.add_argument("--seed", type=int, default=0, help="of the items")
    zoo.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    zoo.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    zoo.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to a CSV file")
    zoo.set_defaults(run=_zoo)
    _add_grammars(commands)
    _add_kv(commands)
    _add_tasks(commands)
    commands.add_parser(
        "lm_eval", help="lm_eval's own command, with this engine as its model", add_help=False
    )
    return parser


def _add_tasks(commands: Any) -> None:
    from workbench.evals.task_command import add_commands

    add_commands(commands)


def _lm_eval(argv: Sequence[str]) -> int:
    """lm_eval's command line, which knows the model `workbench` and takes it where none is named."""
    import sys

    from lm_eval.__main__ import cli_evaluate

    import workbench.evals.lm_eval_model  # noqa: F401  # registers it

    named = any(word.split("=")[0] in ("--model", "-m") for word in argv)
    default = ["--model", "workbench", "--device", "auto"] if argv[:1] == ["run"] and not named else []
    sys.argv = ["lm_eval", *argv, *default]  # where it reads its arguments
    cli_evaluate()
    return 0


def _add_kv(commands: Any) -> None:
    about = "what an FP8 KV cache costs: perplexity, KL, first parted token and accuracy by context length"
    kv = commands.add_parser("kv", help=about, description=about)
    kv.add_argument(
        "model", nargs="?", default=registry.DEFAULT, help="an embedded model's name, or a folder"
    )
    kv.add_argument(
        "--kv", default="fp8", metavar="NAME[,NAME]", help="kinds of kv_cache_dtype (default fp8)"
    )
    kv.add_argument("--texts", type=int, default=64, help="texts of up to 2,048 tokens (default 64)")
    kv.add_argument("-n", type=int, default=200, help="questions a task (default 200); 0: none")
    kv.add_argument(
        "--text", type=Path, metavar="FILE", help="what to read; default: the zoo's held-out stories"
    )
    kv.add_argument("--seed", type=int, default=0, help="of the items")
    kv.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    kv.add_argument("--plot", type=Path, metavar="FILE", help="KL by position, as .svg, .png or .pdf")
    kv.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    kv.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to a CSV file")
    kv.set_defaults(run=_kv)


def _kv(arguments: argparse.Namespace) -> int:
    from workbench.evals import kv

    folder = registry.folder(arguments.model)
    if arguments.output:
        check_output(arguments.output, (*ORIGIN, "model", "seed", *kv.COLUMNS))
    found = kv.compare(
        folder,
        arguments.kv.split(","),
        texts=arguments.texts,
        questions=arguments.n,
        text=arguments.text.read_text(encoding="utf-8") if arguments.text else None,
        seed=arguments.seed,
        device=arguments.device,
    )
    rows = kv.rows(found)
    say(
        *format_table(
            kv.COLUMNS, [["" if value is None else value for value in row.values()] for row in rows]
        )
    )
    about = provenance(found[0].device) | {"model": arguments.model, "seed": arguments.seed}
    if arguments.plot:
        kv.plot(found).savefig(arguments.plot)
        say(f"wrote {arguments.plot}")
    if arguments.output:
        append(arguments.output, [about | row for row in rows])
    if arguments.json:
        say(json.dumps(about | {"rows": rows}))
    return 0


def _add_grammars(commands: Any) -> None:
    about = "what grammar backends make of the JSON Schema Test Suite: refused, accepted, wrongly allowed"
    grammars = commands.add_parser("grammars", help=about, description=about)
    grammars.add_argument("suite", type=Path, help="a draft's folder of the suite, such as .../draft2020-12")
    grammars.add_argument(
        "--backends", nargs="+", default=["auto"], metavar="NAME", help="default: all that are installed"
    )
    grammars.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    grammars.add_argument("-o", "--output", type=Path, metavar="FILE", help="append the rows to a CSV file")
    grammars.set_defaults(run=_grammars)


def _grammars(arguments: argparse.Namespace) -> int:
    from workbench.evals import grammars
    from workbench.structured.backends import backends_for, open_backend

    if arguments.output:
        check_output(arguments.output, grammars.Finding._fields)
    groups = list(grammars.read_suite(arguments.suite))
    names = dict.fromkeys(name for given in arguments.backends for name in backends_for(given))
    found = [
        finding
        for name in names
        for finding in grammars.measure(groups, open_backend(name, grammars.BYTES), name)
    ]
    rows = [finding._asdict() for finding in (*found, *grammars.totals(found))]
    say(f"{arguments.suite}: {len(groups)} schemas")
    say(*format_table(grammars.Finding._fields, [list(row.values()) for row in rows]))
    if arguments.output:
        append(arguments.output, rows)
    if arguments.json:
        say(json.dumps({"suite": str(arguments.suite), "schemas": len(groups), "rows": rows}))
    return 0


def _zoo(arguments: argparse.Namespace) -> int:
    folder = registry.folder(arguments.model)
    adapter = registry.adapter_folder(arguments.adapter) if arguments.adapter else None
    for name in arguments.tasks:
        tasks.check_task(name)
    if arguments.output:
        check_output(arguments.output, ABOUT + COLUMNS)
    from workbench.evals import zoo
    from workbench.models.zoo.score import by_task

    began = time.perf_counter()
    found = zoo.measure(
        folder,
        arguments.n,
        names=arguments.tasks,
        seed=arguments.seed,
        device=arguments.device,
        adapter=adapter,
    )
    seconds = round(time.perf_counter() - began, 1)
    rows = [row(score) for score in (*by_task(found.scores), *found.scores)]
    model = f"{arguments.model} with {arguments.adapter}" if adapter else arguments.model
    say(f"{model} on held-out items, {found.config.device_name}, {found.config.dtype}, {seconds} s")
    say(*format_table(COLUMNS, [["" if value is None else value for value in r.values()] for r in rows]))
    about = {"model": model, "seed": arguments.seed, "dtype": found.config.dtype}
    if arguments.output:
        append(arguments.output, [{**about, **line} for line in rows])
    if arguments.json:
        say(json.dumps({**about, "device": found.config.device_name, "seconds": seconds, "rows": rows}))
    return 0


def row(score: Any) -> Row:
    """A score as one line: accuracy and its interval, or perplexity; kind `all` is all of a task's kinds."""
    told = bool(score.perplexity)
    low, high = (round(bound, 4) for bound in score.interval)
    values = (score.task, score.kind, score.n) + (
        (None, None, None, None, round(score.perplexity, 3))
        if told
        else (score.right, round(score.accuracy, 4), low, high, None)
    )
    return dict(zip(COLUMNS, values, strict=True))


def check_output(file: Path, columns: Sequence[str]) -> None:
    """Raises now what would otherwise be lost after minutes: a file that cannot take the rows."""
    parent = file.absolute().parent
    if file.is_dir() or not parent.is_dir() or not os.access(file if file.exists() else parent, os.W_OK):
        raise FileNotFoundError(
            f"{file} cannot be written: give a file in a folder that exists and that you may write to"
        )
    if file.exists() and file.stat().st_size:
        with file.open(newline="", encoding="utf-8") as handle:
            found = next(csv.reader(handle))
        if tuple(found) != tuple(columns):
            raise ValueError(f"{file} has other columns ({', '.join(found)}): give a new file")
