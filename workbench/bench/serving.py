"""Many requests through the whole engine, offline: rates and times held against the figures to beat.

The weights are random. One engine serves all workloads of a model; each is run once to warm up, then in
rounds with seeds of their own, of which the best counts. Knows the public API and the trace, nothing below.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from workbench.bench import bounds, breakdown
from workbench.bench.provenance import provenance
from workbench.bench.workloads import (
    BYTES_PER_S,
    FLOPS_PER_S,
    TARGET_GPU,
    TARGETS,
    Asked,
    Target,
    Unit,
    Workload,
    best,
    chosen,
    draw,
    is_met,
    model_folder,
)
from workbench.llm import LLM
from workbench.models.spec import ModelSpec, read_spec
from workbench.outputs import RequestOutput
from workbench.params import SamplingParams
from workbench.trace.schema import Tables

MAX_NUM_SEQS = 1024  # as the figures to beat were measured
TEMPERATURE = 0.6
TOP_KERNELS = 12  # named one by one under a profile
NAME_LENGTH = 80  # a template of a library spells out all its types
SHOWN = (
    "model",
    "workload",
    "figure",
    "unit",
    "vllm",
    "reach",
    "met",
    "steps",
    "step_ms",
    "roofline_ms",
    "host_ms",
    "ttft_ms",
)
SHOWN_PROFILE = ("model", "workload", "part", "kernel", "calls_per_step", "ms_per_step", "bound_ms", "share")

Row = dict[str, Any]


class Options(NamedTuple):
    """What to measure."""

    model: str  # of MODELS, a folder, or zoo/<name>
    workloads: Sequence[str]  # names, or "all"
    rounds: int = 2
    scale: float = 1.0  # of requests and lengths; only 1 is the workload as it is defined
    kv_cache_dtype: str = "auto"
    max_num_seqs: int = MAX_NUM_SEQS
    seed: int = 0  # of the warm-up; the rounds count on from it


class Bench(NamedTuple):
    """An engine and what to run on it."""

    options: Options
    llm: LLM
    spec: ModelSpec
    workloads: list[Workload]


class Round(NamedTuple):
    """One round, as the clock and the trace saw it."""

    seconds: float  # from the call of generate to its return
    ttft_s: float  # the mean over its requests
    in_tokens: int
    out_tokens: int
    cached_tokens: int  # of in_tokens, found in the prefix cache
    steps: int
    host_s: float  # planning and committing, the mean of a step
    tables: Tables


def measure(options: Options) -> tuple[list[Row], dict[str, Any]]:
    """A row a workload: the best round's figure beside vLLM's and the one to reach, and how it came about.

    Raises:
        ValueError: a model, workload or setting that cannot be; the message says which can.
        RuntimeError: a request ended before it had its tokens.
    """
    if options.rounds < 1:
        raise ValueError(f"rounds is {options.rounds}: use at least 1")
    with _open(options) as bench:
        origin = provenance(bench.llm.config.device_name)
        rows = []
        with tqdm(total=len(bench.workloads) * (options.rounds + 1), desc="Serving", unit="round") as bar:
            for workload in bench.workloads:
                rounds = list(_rounds(bench, workload, bar))
                rows.append(origin | _row(bench, workload, rounds))
        return rows, {"engine": repr(bench.llm)}


def profile(options: Options) -> tuple[list[Row], dict[str, Any]]:
    """Milliseconds a step by part and by kernel, of one round of each workload under torch's profiler.

    Raises:
        ValueError: the engine is not on a GPU; and as `measure`.
    """
    with _open(options) as bench:
        if bench.llm.config.device != "cuda":
            raise ValueError("a profile shows kernels of a CUDA device: leave --profile out on a CPU")
        origin = provenance(bench.llm.config.device_name)
        rows, summary = [], {}
        for workload in tqdm(bench.workloads, desc="Profiling", unit="workload"):
            plain = next(_rounds(bench, workload, None, 1))
            asked = prepare(bench, workload, options.seed + 1)
            found, spans = breakdown.profiled(partial(timed, bench.llm, asked))
            named = origin | {"model": options.model, "workload": workload.name}
            least = _least_seconds(bench, workload, found)
            rows += [named | row for row in profile_rows(found, spans, least)]
            summary[f"{workload.name}_step_ms_without_profiler"] = _round(plain.seconds / plain.steps * 1e3)
        return rows, summary


@contextmanager
def _open(options: Options) -> Iterator[Bench]:
    with model_folder(options.model) as folder:
        spec = read_spec(folder)
        workloads = chosen(options.model, options.workloads, spec.max_position_embeddings, options.scale)
        with LLM(
            str(folder),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_num_seqs=max(1, round(options.max_num_seqs * options.scale)),
            max_model_len=max(workload.longest for workload in workloads),
            kv_cache_dtype=options.kv_cache_dtype,
        ) as llm:
            yield Bench(options, llm, spec, workloads)


# --- rounds ---------------------------------------------------------------------------------------------


def _rounds(
    bench: Bench, workload: Workload, bar: tqdm[Any] | None, count: int | None = None
) -> Iterator[Round]:
    """The rounds that count, behind one that does not."""
    for number in range((count or bench.options.rounds) + 1):
        found = timed(bench.llm, prepare(bench, workload, bench.options.seed + number))
        if bar is not None:
            # Seen even where the command is stopped before it has its rows.
            bar.set_postfix_str(f"{workload.name} {_round(figure(workload.unit, found))} {workload.unit}")
            bar.update()
        if number:
            yield found


def prepare(bench: Bench, workload: Workload, seed: int) -> Asked:
    """One round's requests, for an engine whose prefix cache is empty now, or holds the prompts."""
    asked = draw(workload, bench.spec.vocab_size, seed)
    if not bench.llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache cannot be emptied: requests of an earlier round hold blocks")
    if workload.warm_cache:
        bench.llm.generate(asked.prompts, _params(1), use_tqdm=False)
    gc.collect()  # what earlier rounds left is not collected on this one's time
    return asked


def timed(llm: LLM, asked: Asked) -> Round:
    """Send the requests, all at once, and watch the clock and the trace."""
    params = [_params(out) for out in asked.outs]
    with llm.trace.record() as trace:
        began = time.perf_counter()
        outputs = llm.generate(asked.prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
    _check(asked, outputs)
    tables = trace.columns
    return Round(
        seconds=seconds,
        ttft_s=statistics.fmean((output.metrics.first_token_ts or 0.0) - began for output in outputs),
        in_tokens=sum(map(len, asked.prompts)),
        out_tokens=sum(asked.outs),
        cached_tokens=sum(output.num_cached_tokens for output in outputs),
        steps=len(tables.steps["step"]),
        host_s=float(np.nanmean(tables.steps["host_s"])),
        tables=tables,
    )


def _params(out: int) -> SamplingParams:
    return SamplingParams(temperature=TEMPERATURE, ignore_eos=True, max_tokens=out)


def _check(asked: Asked, outputs: Sequence[RequestOutput]) -> None:
    for output, out in zip(outputs, asked.outs, strict=True):
        (completion,) = output.outputs
        if len(completion.token_ids) != out:
            raise RuntimeError(
                f"request {output.request_id} ended with {len(completion.token_ids)} of {out} tokens"
                f" ({completion.finish_reason}): the log says why"
            )


def figure(unit: Unit, found: Round) -> float:
    """A round in its unit: "ms/token" is the time past the first token over the tokens past it."""
    if unit == "ms/token":
        return (found.seconds - found.ttft_s) / (found.out_tokens - 1) * 1e3
    if unit == "s":
        return found.seconds
    return (found.out_tokens if unit == "out tok/s" else found.in_tokens) / found.seconds


# --- rows -----------------------------------------------------------------------------------------------


def _row(bench: Bench, workload: Workload, rounds: Sequence[Round]) -> Row:
    figures = [figure(workload.unit, found) for found in rounds]
    value = best(workload.unit, figures)
    counted = rounds[figures.index(value)]
    config, options = bench.llm.config, bench.options
    target = target_of(bench, workload)
    kv_cache_dtype = config.dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
    return {
        "model": options.model,
        "workload": workload.name,
        "scale": options.scale,
        "dtype": config.dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "rounds": options.rounds,
        "figure": _round(value),
        "unit": workload.unit,
        "all_figures": " ".join(str(_round(value)) for value in figures),
        "vllm": "" if target is None else target.vllm,
        "reach": "" if target is None else target.reach,
        "met": "" if target is None else "yes" if is_met(workload.unit, value, target.reach) else "no",
        "seconds": _round(counted.seconds),
        "in_tokens": counted.in_tokens,
        "out_tokens": counted.out_tokens,
        "cached_tokens": counted.cached_tokens,
        "steps": counted.steps,
        "step_ms": _round(counted.seconds / counted.steps * 1e3),
        **_roofline(bench, workload, counted),
        "host_ms": _round(counted.host_s * 1e3),
        "ttft_ms": _round(counted.ttft_s * 1e3),
    }


def target_of(bench: Bench, workload: Workload) -> Target | None:
    """The figures to beat; None where they were measured on something else than what runs here."""
    config, options = bench.llm.config, bench.options
    if TARGET_GPU not in config.device_name or config.dtype != "bfloat16" or options.scale != 1:
        return None
    return TARGETS.get((options.model, workload.name, "fp8" if _has_fp8(bench) else "bf16"))


def profile_rows(found: Round, spans: Sequence[breakdown.Span], least: Mapping[str, float]) -> list[Row]:
    """The parts, the time in which the device did nothing, their sum; then the kernels that take longest.

    Args:
        least: seconds of the whole round that a part takes at the least; none for a part that is not here.
    """
    shares = breakdown.charge(spans)
    parts = breakdown.by_part(shares)
    idle = found.seconds - sum(share.seconds for share in parts.values())
    rows = [_profile_row(found, part, "", share, least.get(part, 0.0)) for part, share in parts.items()]
    rows.append(_profile_row(found, "idle", "", breakdown.Share(idle, 0), 0.0))
    whole = breakdown.Share(found.seconds, len(spans))
    rows.append(_profile_row(found, "total", "", whole, sum(least.values())))
    longest = sorted(shares.items(), key=lambda item: -item[1].seconds)[:TOP_KERNELS]
    return rows + [_profile_row(found, part, kernel, share, None) for (part, kernel), share in longest]


def _profile_row(found: Round, part: str, kernel: str, share: breakdown.Share, bound_s: float | None) -> Row:
    return {
        "part": part,
        "kernel": kernel[:NAME_LENGTH],
        "calls_per_step": _round(share.calls / found.steps),
        "ms_per_step": _round(share.seconds / found.steps * 1e3),
        "bound_ms": "" if bound_s is None else _round(bound_s / found.steps * 1e3),
        "share": _round(share.seconds / found.seconds),
        "steps": found.steps,
    }


def _least_seconds(bench: Bench, workload: Workload, found: Round) -> dict[str, float]:
    """The bound of the parts that have one."""
    return {
        part: sum(work.seconds(BYTES_PER_S, FLOPS_PER_S) for work in works)
        for part, works in _works(bench, workload, found).items()
    }


def _roofline(bench: Bench, workload: Workload, found: Round) -> Row:
    """What a step has to move, and how long that takes at the rate at which memory is copied.

    Beside the measured step it says how much of the bandwidth is used; only where that rate was measured.
    """
    moved = sum(work.bytes.sum() for works in _works(bench, workload, found).values() for work in works)
    known = TARGET_GPU in bench.llm.config.device_name
    milliseconds = _round(moved / found.steps / BYTES_PER_S * 1e3) if known else ""
    return {"step_gb": _round(moved / found.steps / 1e9), "roofline_ms": milliseconds}


def _works(bench: Bench, workload: Workload, found: Round) -> dict[str, tuple[bounds.Work, ...]]:
    """The work of the parts that have a bound, with weights of 16 bits."""
    lines = found.tables.step_requests
    chunks = bounds.Chunks(lines["step"], lines["start"], lines["scheduled"], lines["samples"])
    attention = bounds.attention(bench.spec, chunks, 1 if _has_fp8(bench) else 2, workload.shared)
    products = (bounds.layers(bench.spec, chunks, 2), bounds.head(bench.spec, chunks, 2))
    return {"gemm": products, "attention": (attention,)}


def _has_fp8(bench: Bench) -> bool:
    return bench.options.kv_cache_dtype.startswith("fp8")


def _round(value: float) -> float:
    """Six digits; whole above a thousand."""
    return float(f"{value:.6g}") if abs(value) < 1000 else round(value)
