"""`workbench soak`: uses engines at random for some minutes; exit status 1 if anything went wrong."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from typing import Any

from workbench.console import say
from workbench.soak.memory import use_one_heap

FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Run it; 0 when nothing crashed, hung, leaked or was wrong."""
    arguments = _parser().parse_args(argv)
    # Callers, engine and torch's threads want the same cores: those that wait sleep. Read with torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    use_one_heap()
    from workbench.soak.faults import Injected
    from workbench.soak.rounds import soak

    logging.getLogger("workbench.engine.loop").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], Injected))
    )
    report = soak(
        arguments.minutes,
        arguments.model,
        threads=arguments.threads,
        seed=arguments.seed,
        device=arguments.device,
        told=_tell,
    )
    for failure in report.failures:
        say("", failure)
    total = report.total
    say("", ", ".join(f"{total[name]} {name}" for name in sorted(total)) or "nothing was done")
    if report.memory is None:
        say("memory: too few rounds for a slope, or a system that does not tell")
    else:
        value, low, high = report.memory
        say(f"memory: {value:+.2f} MiB a round (95 %: {low:+.2f} to {high:+.2f})")
    say("passed" if report.passed else "FAILED")
    if arguments.json:
        say(json.dumps({"rounds": report.rounds, "failures": report.failures, "memory": report.memory,
                        "passed": report.passed}))  # fmt: skip
    return 0 if report.passed else FAILED


def _tell(line: dict[str, Any]) -> None:
    counts = line["counts"]
    shown = ", ".join(
        f"{counts[name]} {name}" for name in ("requests", "tokens", "failures") if name in counts
    )
    resident = "" if line["resident_mib"] is None else f", {line['resident_mib']:.0f} MiB"
    say(f"round {line['round']}: {shown}{resident}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench soak",
        description="Use engines at random from several threads, with faults: does anything crash, hang, "
        "leak or lie?",
    )
    parser.add_argument("--minutes", type=float, default=5.0, metavar="N")
    parser.add_argument("--model", default="zoo/wren-1m", help="a folder or zoo/<name>; in float32")
    parser.add_argument("--threads", type=int, default=3, metavar="N", help="callers of one engine at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser
