"""What a sampling option costs: milliseconds of a whole decode step, as a ratio to greedy in the same run.

All requests ask for the same, arrive at once and decode together. Every round runs an option right behind
greedy with the same prompts, so that what else the machine does falls on both; the median ratio counts.
The first run of an option in the engine is timed apart: nobody should wait for what is compiled or set up
then. Knows the public API and the trace, nothing below.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from workbench.bench.provenance import provenance
from workbench.bench.workloads import MODELS, TARGET_GPU, model_folder
from workbench.llm import LLM
from workbench.models.spec import read_spec
from workbench.params import SamplingParams

Row = dict[str, Any]

GREEDY = "greedy"
# What each option asks for; all end by length alone.
OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        GREEDY: {"temperature": 0.0},
        "temperature": {"temperature": 0.8},
        "top_k_top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
        "min_p": {"temperature": 0.8, "min_p": 0.05},
        "penalties": {
            "temperature": 0.0,
            "repetition_penalty": 1.1,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.2,
        },
        "logprobs": {"temperature": 0.0, "logprobs": 5},
    }
)
# Ratios to reach on one H200 at 256 requests of llama-8b.
REACH: Mapping[str, float] = MappingProxyType({"top_k_top_p": 1.05, "logprobs": 1.10})
REACH_AT = ("llama-8b", 256)
SHOWN = ("model", "option", "requests", "greedy_ms", "step_ms", "ratio", "reach", "first_s")


class Load(NamedTuple):
    """What each request is."""

    tokens: int = 128  # of the prompt
    out: int = 128


class Bench(NamedTuple):
    """An engine and what it is asked."""

    llm: LLM
    model: str
    vocab: int
    load: Load


class Timed(NamedTuple):
    """One run of all requests."""

    seconds: float
    step_ms: float  # the mean of the steps in which everybody decodes


def measure(
    model: str, requests: Sequence[int], options: Sequence[str], load: Load, rounds: int
) -> tuple[list[Row], Row]:
    """A row an option and number of requests.

    Raises:
        ValueError: an option, model or number that cannot be; the message says which can.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: use at least 1")
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ValueError(f"no option {unknown[0]!r}: choose among {', '.join(OPTIONS)}")
    asked = [name for name in options if name != GREEDY]
    with model_folder(model) as folder, _open(str(folder), model, requests, load) as llm:
        bench = Bench(llm, model, read_spec(folder).vocab_size, load)
        origin = provenance(llm.config.device_name) | {"model": model} | load._asdict()
        rows: list[Row] = []
        with tqdm(total=len(requests) * len(asked), desc="Measuring", unit="option") as bar:
            for count in requests:
                _run(bench, GREEDY, count, 0)  # what is set up for the first batch of this size
                for name in asked:
                    rows.append(origin | _option(bench, name, count, rounds))
                    bar.update()
        return rows, {"engine": repr(llm)}


def _open(folder: str, model: str, requests: Sequence[int], load: Load) -> LLM:
    return LLM(
        folder,
        load_format="dummy" if model in MODELS else "auto",
        skip_tokenizer_init=True,
        max_num_seqs=max(requests),
        max_num_batched_tokens=max(8192, *requests),
        max_model_len=load.tokens + load.out,
        enable_prefix_caching=False,
    )


def _option(bench: Bench, name: str, count: int, rounds: int) -> Row:
    first = _run(bench, name, count, 1).seconds
    pairs = [
        (_run(bench, GREEDY, count, number), _run(bench, name, count, number))
        for number in range(2, rounds + 2)
    ]
    later = statistics.median(option.seconds for _, option in pairs)
    ratios = [option.step_ms / greedy.step_ms for greedy, option in pairs]
    at_target = (bench.model, count) == REACH_AT and TARGET_GPU in bench.llm.config.device_name
    return {
        "option": name,
        "requests": count,
        "rounds": rounds,
        "greedy_ms": round(statistics.median(greedy.step_ms for greedy, _ in pairs), 3),
        "step_ms": round(statistics.median(option.step_ms for _, option in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "all_ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
        "reach": REACH.get(name, "") if at_target else "",
        "first_s": round(first - later, 3),
    }


def _run(bench: Bench, name: str, count: int, seed: int) -> Timed:
    llm, load = bench.llm, bench.load
    prompts = np.random.default_rng(seed).integers(3, bench.vocab, (count, load.tokens)).tolist()
    params = SamplingParams(max_tokens=load.out, ignore_eos=True, **OPTIONS[name])
    with llm.trace.record() as trace:
        began = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
    steps = trace.columns.steps
    together = np.asarray(steps["decode"]) == count
    ended = np.asarray(steps["collected_s"])[together]
    if len(ended) < 2:
        raise ValueError(f"{load.out} tokens are too few: no two steps in which all {count} requests decode")
    return Timed(seconds, float(ended[-1] - ended[0]) / (len(ended) - 1) * 1e3)
