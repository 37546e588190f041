"""From process start to the first token: what this engine adds to importing torch and transformers."""

from __future__ import annotations

import statistics
import subprocess
import sys
from typing import Any

from tqdm.auto import tqdm

# What any engine on torch has to import: the floor, and no more than that.
FLOOR = "import torch; from transformers import AutoConfig, AutoTokenizer"
FIRST_TOKEN = (
    "from workbench import LLM, SamplingParams;"
    "LLM().generate('Once upon a time', SamplingParams(max_tokens=1), use_tqdm=False)"
)
_CLOCK = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"


def measure(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Seconds of each program in a process of its own, in turn; the difference of the medians."""
    programs = {"imports": FLOOR, "first token": FIRST_TOKEN}
    for program in programs.values():
        _seconds(program)  # bring the files into the disk cache
    rows: list[dict[str, Any]] = []
    with tqdm(total=rounds * len(programs), desc="Starting", unit="process") as bar:
        for number in range(rounds):
            for name, program in programs.items():
                rows.append({"program": name, "round": number, "seconds": round(_seconds(program), 3)})
                bar.update()
    medians = {
        name: statistics.median(row["seconds"] for row in rows if row["program"] == name) for name in programs
    }
    beyond = medians["first token"] - medians["imports"]
    found = {"imports_s": medians["imports"], "first_token_s": medians["first token"]}
    return rows, found | {"beyond_s": round(beyond, 3)}


def _seconds(program: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _CLOCK.format(program)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])
