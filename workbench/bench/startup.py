"""From process start to the first token: what this engine adds to importing torch and transformers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from workbench.bench.provenance import provenance
from workbench.bench.workloads import model_folder

# What any engine on torch has to import: the floor, and no more than that.
FLOOR = "import torch; from transformers import AutoConfig, AutoTokenizer"
FIRST_TOKEN = (
    "from workbench import LLM, SamplingParams;"
    "LLM().generate('Once upon a time', SamplingParams(max_tokens=1), use_tqdm=False)"
)
_CLOCK = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
# The time of day, which parent and child agree upon; random weights, the token ids of no text.
_MODEL = """
import sys, time
import torch
imported = time.time()
from workbench import LLM, SamplingParams
llm = LLM(sys.argv[1], load_format="dummy", skip_tokenizer_init=True)
opened = time.time()
params = SamplingParams(max_tokens=1, ignore_eos=True)
llm.generate([list(range(3, 35))], params, use_tqdm=False)
print(imported, opened, time.time(), llm.config.device_name, sep="\\t")
"""


class Start(NamedTuple):
    """One process, in seconds since it was started."""

    import_torch_s: float
    open_s: float  # LLM(...) has returned
    first_token_s: float
    device_name: str


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


def measure_model(model: str, rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Starts of a model with random weights: one with an empty Triton cache, then `rounds` with that cache.

    The cache is a temporary folder, so that the first start compiles every kernel it needs, and nobody's own
    cache is touched. The medians are of the warm starts.

    Raises:
        ValueError: no such model, or no round to measure.
        RuntimeError: a process failed; the message is the end of what it said.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: use at least 1")
    _seconds(FLOOR)  # bring torch's files into the disk cache: the first start is to be cold in one way only
    with model_folder(model) as folder, tempfile.TemporaryDirectory(prefix="workbench-") as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache}
        names = ["cold", *["warm"] * rounds]
        starts = [_start(folder, environment) for _ in tqdm(names, desc="Starting", unit="process")]
    origin = provenance(starts[0].device_name) | {"model": model}
    rows = [origin | {"triton_cache": name} | _row(one) for name, one in zip(names, starts, strict=True)]
    return rows, _medians(rows)


def _start(folder: Path, environment: Mapping[str, str]) -> Start:
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-c", _MODEL, str(folder)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the process ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
    *times, device_name = done.stdout.splitlines()[-1].split("\t")
    imported, opened, first = (float(at) - began for at in times)
    return Start(imported, opened, first, device_name)


def _row(start: Start) -> dict[str, float]:
    return {
        "import_torch_s": round(start.import_torch_s, 3),
        "open_s": round(start.open_s, 3),
        "first_token_s": round(start.first_token_s, 3),
        "past_import_s": round(start.first_token_s - start.import_torch_s, 3),
    }


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    warm = [row for row in rows if row["triton_cache"] == "warm"]
    return {
        name: round(statistics.median(row[name] for row in warm), 3)
        for name in ("first_token_s", "past_import_s")
    }
