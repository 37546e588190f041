"""The engine's counters and gauges, by the names vLLM gave them, of a live engine and of a trace alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from workbench.engine.scheduler import Scheduler

REASONS = ("stop", "length", "abort", "error")


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. A counter only grows; a gauge is how things stand."""

    name: str
    kind: Literal["counter", "gauge"]
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    meaning: str = ""


class Totals(NamedTuple):
    """What the figures are made of, whoever counted it."""

    running: int
    waiting: int
    blocks_held: int
    blocks: int
    queried_tokens: int  # looked up in the prefix cache by requests that were scheduled for the first time
    cached_tokens: int  # and found
    prompt_tokens: int
    output_tokens: int
    preemptions: int
    finished: Mapping[str, int]  # by reason
    drafts: int = 0  # times a request's drafts were verified
    draft_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: Sequence[int] = ()  # by place: first draft, second ...


def metrics_of(totals: Totals) -> list[Metric]:
    """The figures, in vLLM's meaning: a lookup after a preemption counts as neither query nor hit."""
    gauges = (
        ("num_requests_running", totals.running, "Requests with a batch row."),
        ("num_requests_waiting", totals.waiting, "Requests in the queue."),
        ("kv_cache_usage_perc", totals.blocks_held / max(totals.blocks, 1), "KV blocks held; 1 is all."),
    )
    counters: tuple[tuple[str, int, str], ...] = (
        ("prefix_cache_queries", totals.queried_tokens, "Tokens looked up in the prefix cache."),
        ("prefix_cache_hits", totals.cached_tokens, "Tokens found in the prefix cache."),
        ("prompt_tokens", totals.prompt_tokens, "Prompt tokens of the requests that were scheduled."),
        ("generation_tokens", totals.output_tokens, "Tokens generated."),
        ("num_preemptions", totals.preemptions, "Preemptions."),
    )
    if totals.drafts:
        counters += (
            ("spec_decode_num_drafts", totals.drafts, "Times that drafts of a request were verified."),
            ("spec_decode_num_draft_tokens", totals.draft_tokens, "Drafts that were verified."),
            ("spec_decode_num_accepted_tokens", totals.accepted_tokens, "Drafts that became output."),
        )
    places = [
        Metric("vllm:spec_decode_num_accepted_tokens_per_pos", "counter", count,
               (("position", str(place)),), "Drafts that became output, by their place.")
        for place, count in enumerate(totals.accepted_at)
    ]  # fmt: skip
    ends = [
        Metric("vllm:request_success", "counter", totals.finished.get(reason, 0),
               (("finished_reason", reason),), "Requests that ended, by reason.")
        for reason in REASONS
    ]  # fmt: skip
    return [
        *(Metric(f"vllm:{name}", "gauge", value, (), meaning) for name, value, meaning in gauges),
        *(Metric(f"vllm:{name}", "counter", value, (), meaning) for name, value, meaning in counters),
        *places,
        *ends,
    ]


def read_metrics(scheduler: Scheduler) -> list[Metric]:
    """The figures of now."""
    pool, counts = scheduler.cache.pool, scheduler.counts
    totals = Totals(
        running=scheduler.running.count,
        waiting=len(scheduler.waiting),
        blocks_held=pool.num_held,
        blocks=pool.num_blocks,
        queried_tokens=counts.prefix_queries,
        cached_tokens=counts.prefix_hits,
        prompt_tokens=counts.prompt_tokens,
        output_tokens=counts.generation_tokens,
        preemptions=counts.preemptions,
        finished={str(reason): count for reason, count in counts.finished.items()},
        drafts=counts.drafts,
        draft_tokens=counts.draft_tokens,
        accepted_tokens=counts.accepted_tokens,
        accepted_at=counts.accepted_at,
    )
    return metrics_of(totals)
