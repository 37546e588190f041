"""What a sampling option costs: milliseconds of a whole decode step, as a ratio to greedy in the same run.

All requests ask for the same, arrive at once and decode together. Every round runs an option right behind
greedy with the same prompts, so that what else the machine does falls on both; the median ratio counts.
The first run of an option in the engine is timed apart: nobody should wait for what is compiled or set up
then. Logprobs of prompts are timed on long prompts, from the call to its return. Knows the public API and
the trace, nothing below.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from workbench.bench.provenance import provenance
from workbench.bench.vocabulary import write_tokenizer
from workbench.bench.workloads import MODELS, TARGET_GPU, model_folder
from workbench.llm import LLM
from workbench.models.spec import read_spec
from workbench.params import SamplingParams, StructuredOutputsParams

Row = dict[str, Any]

GREEDY = "greedy"
_RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "active": {"type": "boolean"},
        "kind": {"enum": ["owl", "fox", "hare"]},
    },
    "required": ["name", "age", "active", "kind"],
    "additionalProperties": False,
}
# Longer than anybody generates, so that length alone ends it.
_RECORDS = {"type": "array", "items": _RECORD, "minItems": 4096}
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
        "json": {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(json=_RECORDS)},
    }
)
PROMPTS = "prompt_logprobs"
# Ratios to reach on one H200 at 256 requests of llama-8b, and of its prompts.
REACH: Mapping[str, float] = MappingProxyType(
    {"top_k_top_p": 1.05, "logprobs": 1.10, "json": 1.10, PROMPTS: 1.3}
)
REACH_AT = ("llama-8b", 256)
SHOWN = (
    "model",
    "option",
    "requests",
    "tokens",
    "out",
    "greedy_ms",
    "option_ms",
    "ratio",
    "reach",
    "first_s",
)


class Load(NamedTuple):
    """What each request is."""

    tokens: int = 128  # of the prompt
    out: int = 128


LONG = Load(2048, 1)  # whose prompts are told of
LONG_PROMPTS = 16


class Bench(NamedTuple):
    """An engine and what it is asked."""

    llm: LLM
    model: str
    vocab: int
    load: Load


class Timed(NamedTuple):
    """One run of all requests."""

    seconds: float
    step_ms: float  # for a token of everybody, where everybody decodes


def measure(
    model: str, requests: Sequence[int], options: Sequence[str], load: Load, rounds: int
) -> tuple[list[Row], Row]:
    """A row an option and number of requests.

    Raises:
        ValueError: an option, model or number that cannot be; the message says which can.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: use at least 1")
    choices = (*OPTIONS, PROMPTS)
    if unknown := [name for name in options if name not in choices]:
        raise ValueError(f"no option {unknown[0]!r}: choose among {', '.join(choices)}")
    asked = [name for name in options if name not in (GREEDY, PROMPTS)]
    with _open(model, requests, load) as bench:
        origin = provenance(bench.llm.config.device_name) | {"model": model}
        rows: list[Row] = []
        total = len(requests) * len(asked) + (PROMPTS in options)
        with tqdm(total=total, desc="Measuring", unit="option") as bar:
            for count in requests:
                _run(bench, GREEDY, count, 0)  # what is set up for the first batch of this size
                for name in asked:
                    rows.append(origin | _option(bench, name, count, rounds))
                    bar.update()
            if PROMPTS in options:
                rows.append(origin | _prompts(bench, rounds))
                bar.update()
        return rows, {"engine": repr(bench.llm)}


@contextmanager
def _open(model: str, requests: Sequence[int], load: Load) -> Iterator[Bench]:
    with model_folder(model) as folder, tempfile.TemporaryDirectory(prefix="workbench-") as place:
        spec = read_spec(folder)
        settings: Row = {}
        if model in MODELS:
            eos = write_tokenizer(Path(place), spec.vocab_size)
            settings = {"load_format": "dummy", "tokenizer": place, "hf_overrides": {"eos_token_id": eos}}
        with LLM(
            str(folder),
            max_num_seqs=max(*requests, LONG_PROMPTS),
            max_num_batched_tokens=max(8192, *requests),
            max_model_len=min(spec.max_position_embeddings, max(sum(load), sum(LONG))),
            enable_prefix_caching=False,
            **settings,
        ) as llm:
            yield Bench(llm, model, spec.vocab_size, load)


def _option(bench: Bench, name: str, count: int, rounds: int) -> Row:
    first = _run(bench, name, count, 1).seconds
    pairs = [
        (_run(bench, GREEDY, count, number), _run(bench, name, count, number))
        for number in range(2, rounds + 2)
    ]
    later = statistics.median(option.seconds for _, option in pairs)
    times = [(greedy.step_ms, option.step_ms) for greedy, option in pairs]
    return _row(bench, name, count, bench.load, times, first - later)


def _prompts(bench: Bench, rounds: int) -> Row:
    """Long prompts, with logprobs of all their tokens and without."""
    longest = bench.llm.config.max_model_len - LONG.out
    bench = bench._replace(load=LONG._replace(tokens=min(LONG.tokens, longest)))
    asked = {GREEDY: OPTIONS[GREEDY], PROMPTS: {**OPTIONS[GREEDY], "prompt_logprobs": 5}}

    def seconds(name: str, seed: int) -> float:
        return _generate(bench, asked[name], LONG_PROMPTS, seed)

    seconds(GREEDY, 0)
    first = seconds(PROMPTS, 1)
    pairs = [(seconds(GREEDY, number), seconds(PROMPTS, number)) for number in range(2, rounds + 2)]
    later = statistics.median(option for _, option in pairs)
    times = [(greedy * 1e3, option * 1e3) for greedy, option in pairs]
    return _row(bench, PROMPTS, LONG_PROMPTS, bench.load, times, first - later)


def _row(
    bench: Bench, name: str, count: int, load: Load, times: Sequence[tuple[float, float]], first_s: float
) -> Row:
    """`times`: milliseconds of greedy and of the option, a pair a round."""
    ratios = [option / greedy for greedy, option in times]
    at_target = bench.model == REACH_AT[0] and TARGET_GPU in bench.llm.config.device_name
    due = at_target and (name == PROMPTS or count == REACH_AT[1])
    return {
        "option": name,
        "requests": count,
        "tokens": load.tokens,
        "out": load.out,
        "rounds": len(times),
        "greedy_ms": round(statistics.median(greedy for greedy, _ in times), 3),
        "option_ms": round(statistics.median(option for _, option in times), 3),
        "ratio": round(statistics.median(ratios), 3),
        "all_ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
        "reach": REACH.get(name, "") if due else "",
        "first_s": round(first_s, 3),
    }


def _run(bench: Bench, name: str, count: int, seed: int) -> Timed:
    load = bench.load
    with bench.llm.trace.record() as trace:
        seconds = _generate(bench, OPTIONS[name], count, seed)
    steps = trace.columns.steps
    together = (np.asarray(steps["prefill"]) == 0) & (np.asarray(steps["requests"]) == count)
    ended = np.asarray(steps["collected_s"])[together]
    if len(ended) < 2:
        raise ValueError(f"{load.out} tokens are too few: no two steps in which all {count} requests decode")
    taken = (np.asarray(steps["sampled"]) + np.asarray(steps["forced"]))[together][1:].sum() / count
    return Timed(seconds, float(ended[-1] - ended[0]) / float(taken) * 1e3)


def _generate(bench: Bench, options: Mapping[str, Any], count: int, seed: int) -> float:
    """Seconds from the call to its return."""
    load = bench.load
    prompts = np.random.default_rng(seed).integers(3, bench.vocab, (count, load.tokens)).tolist()
    ends = {"ignore_eos": "structured_outputs" not in options}  # which end with EOS alone
    params = SamplingParams(max_tokens=load.out, detokenize=False, **(ends | dict(options)))
    began = time.perf_counter()
    bench.llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - began
