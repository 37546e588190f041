"""A trace as Prometheus text, by the names vLLM's server exposes. Knows the tables, no clock and no network.

Counters and histograms are over the whole trace; gauges are how things stood at its last step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.metrics import Totals, metrics_of
from workbench.trace.schema import Table, Tables

Labels = tuple[tuple[str, str], ...]

# Upper bounds as vLLM's dashboards expect them, in seconds.
TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
        40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
           40.0, 80.0)  # fmt: skip
WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
         480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MOST_TOKENS = 1 << 20  # of a request; the bounds for tokens are 1, 2, 5, 10 ... up to it


class Histogram(NamedTuple):
    """Seconds or tokens that are to be sorted into buckets."""

    name: str
    meaning: str
    bounds: Sequence[float]
    values: npt.NDArray[Any]  # NaN: not known, not counted


def exposition(tables: Tables) -> str:
    """The text, in format 0.0.4."""
    labels: Labels = (("engine", "0"), ("model_name", str(tables.runs["model"][0] or "")))
    lines: list[str] = []
    told = ""
    for metric in metrics_of(_totals(tables)):
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        if name != told:
            lines += _head(name, metric.kind, metric.meaning)
        told = name
        lines.append(_line(name, (*labels, *metric.labels), metric.value))
    for histogram in _histograms(tables):
        lines += _histogram(histogram, labels)
    return "\n".join(lines) + "\n"


def _totals(tables: Tables) -> Totals:
    steps, requests = tables.steps, tables.requests
    held, free = (_last(steps[name]) for name in ("blocks_held", "blocks_free"))
    admitted = ~np.isnan(requests["scheduled_s"])
    chunks = tables.step_requests
    verified = (chunks["accepted"] + chunks["rejected"]) > 0
    most = int(chunks["draft"][verified].max(initial=0))
    return Totals(
        running=_last(steps["running"]),
        waiting=_last(steps["waiting"]),
        blocks_held=held,
        blocks=held + free,
        queried_tokens=int(requests["queried_tokens"].sum()),
        cached_tokens=int(requests["cached_tokens"].sum()),
        prompt_tokens=int(requests["prompt_tokens"][admitted].sum()),
        output_tokens=int(tables.runs["output_tokens"][0]),  # others were generated before the trace began
        preemptions=int(requests["preemptions"].sum()),
        finished=Counter(reason for reason in requests["finish_reason"].tolist() if reason is not None),
        drafts=int(verified.sum()),
        draft_tokens=int(chunks["draft"][verified].sum()),
        accepted_tokens=int(chunks["accepted"][verified].sum()),
        accepted_at=[int((chunks["accepted"] > place).sum()) for place in range(most)],
    )


def _last(column: npt.NDArray[Any]) -> int:
    return int(column[-1]) if len(column) else 0


def _head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


# --- histograms -----------------------------------------------------------------------------------------


def _histograms(tables: Tables) -> Iterator[Histogram]:
    r, tokens = tables.requests, _decades(MOST_TOKENS)
    ended = r["finish_reason"] != None  # noqa: E711 - elementwise
    admitted = ~np.isnan(r["scheduled_s"])
    times = (
        ("time_to_first_token", "From arrival to the first token.", TTFT, r["ttft_s"]),
        ("inter_token_latency", "Between two tokens of a request.", BETWEEN, _between(tables.tokens)),
        ("request_time_per_output_token", "Mean between tokens, by request.", BETWEEN, r["tpot_s"][ended]),
        ("e2e_request_latency", "From arrival to the end.", WHOLE, r["e2e_s"]),
        ("request_queue_time", "From arrival to the first schedule.", WHOLE, r["queue_s"]),
        ("request_prefill_time", "From there to the first token.", WHOLE,
         (r["first_token_s"] - r["scheduled_s"])[ended]),
        ("request_decode_time", "From the first token to the last.", WHOLE,
         (r["last_token_s"] - r["first_token_s"])[ended]),
        ("request_inference_time", "From the first schedule to the last token.", WHOLE,
         (r["last_token_s"] - r["scheduled_s"])[ended]),
    )  # fmt: skip
    for name, meaning, bounds, values in times:
        yield Histogram(f"vllm:{name}_seconds", f"{meaning[:-1]}, in seconds.", bounds, values)
    yield Histogram(
        "vllm:request_prompt_tokens", "Prompt tokens, by request.", tokens, r["prompt_tokens"][admitted]
    )
    yield Histogram(
        "vllm:request_generation_tokens", "Tokens generated, by request.", tokens, r["output_tokens"][ended]
    )
    yield Histogram(
        "vllm:iteration_tokens_total", "Tokens computed, by step.", STEP_TOKENS, tables.steps["scheduled"]
    )


def _between(tokens: Table) -> npt.NDArray[np.float64]:
    """Seconds between each token and the one before it of the same request."""
    # An id used again begins anew at index 0; sorting by time would mix the two only if both were open.
    names, numbers = np.unique(tokens["request_id"].astype(str), return_inverse=True)
    order = np.lexsort((tokens["at_s"], numbers)) if len(names) else np.empty(0, np.int64)
    follows = np.diff(numbers[order], prepend=-1) == 0
    follows &= tokens["index"][order] > 0
    gaps: npt.NDArray[np.float64] = np.diff(tokens["at_s"][order], prepend=0.0)[follows]
    return gaps


def _decades(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50 ... up to `most`."""
    found = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return tuple(bound for bound in found if bound <= most)


def _histogram(histogram: Histogram, labels: Labels) -> Iterator[str]:
    name, _, bounds, values = histogram
    known = np.sort(values[~np.isnan(values)].astype(np.float64))
    yield from _head(name, "histogram", histogram.meaning)
    counts = np.searchsorted(known, np.array(bounds, np.float64), side="right").tolist()  # le: at most
    for bound, count in zip((*bounds, math.inf), (*counts, len(known)), strict=True):
        yield _line(f"{name}_bucket", (*labels, ("le", _number(float(bound)))), count)
    yield _line(f"{name}_sum", labels, float(known.sum()))
    yield _line(f"{name}_count", labels, len(known))


def _line(name: str, labels: Labels, value: float) -> str:
    said = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{said}}} {_number(float(value))}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else repr(value)
