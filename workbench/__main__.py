"""The command line: finds the subcommand, loads only what it needs, and turns errors into one line.

Knows nothing of models and the engine; each subcommand is a module that does.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import workbench
from workbench.console import OutputClosed, flush, say
from workbench.errors import MissingExtra

FAILED = 2  # a wrong argument or a file that is not there
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CUT_OFF = 141  # 128 + SIGPIPE: whoever read our output, such as `head`, had enough

# Subcommands with a parser of their own: everything after the name is theirs.
_DELEGATED = {
    "calibrate": ("workbench.calibration", "find the scales of an FP8 KV cache, and save them"),
    "bench": ("workbench.bench.cli", "measure the engine"),
    "eval": ("workbench.evals.cli", "measure what a model gets right"),
    "soak": ("workbench.soak.cli", "use engines at random for minutes: crashes, leaks, wrong tokens"),
    "lab": ("workbench.lab", "JupyterLab on the notebooks"),
    "zoo": ("workbench.models.zoo.cli", "the embedded models: list, train"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without some sign is no reason to stop
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        return _run(arguments)
    except OutputClosed:
        return CUT_OFF
    except KeyboardInterrupt:
        say("interrupted", to=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, MissingExtra) as error:
        say(f"workbench: {error}", to=sys.stderr)
        return FAILED


def _run(arguments: list[str]) -> int:
    try:
        if arguments and arguments[0] in _DELEGATED:
            module = importlib.import_module(_DELEGATED[arguments[0]][0])
            return module.main(arguments[1:]) or 0
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    finally:
        flush()  # also what --help has written


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workbench", description=workbench.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"workbench {workbench.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="two dozen prompts through a small engine, watched")
    demo.add_argument("-o", "--output", type=Path, default=Path("workbench-demo"), metavar="DIR")
    demo.set_defaults(command=_demo)
    report = commands.add_parser("report", help="a trace's folder as one HTML page")
    report.add_argument(
        "trace", type=Path, metavar="TRACE", help="folder of record(path), to_csv, to_jsonl or to_parquet"
    )
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE")
    report.set_defaults(command=_report)
    for name, (_, text) in _DELEGATED.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _demo(options: argparse.Namespace) -> int:
    # Threads that spin while they wait lose tenfold when another program wants the cores; sleeping ones are
    # slower on a machine of one's own, so benchmarks leave this alone. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from workbench.demo import run

    run(options.output)
    return 0


def _report(options: argparse.Namespace) -> int:
    from workbench.trace import Trace

    trace = Trace.load(options.trace)
    if not len(trace.columns.requests["request_id"]):
        raise ValueError(
            f"{options.trace} holds a trace of nothing: record it while requests run, and write it then"
        )
    if trace.has_events:  # with token ids only; tables have the texts
        from workbench.tokenizer import recorded_tokenizer

        tokenizer = recorded_tokenizer(json.loads(trace.columns.runs["config"][0]))
        if tokenizer is not None:
            trace = Trace.load(options.trace, decode=lambda ids: str(tokenizer.decode(ids)))
    trace.to_report(options.output)
    say(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
