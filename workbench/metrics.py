"""The engine's counters and gauges, by the names vLLM gave them. Reads the scheduler, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.engine.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. A counter only grows; a gauge is how things stand."""

    name: str
    kind: Literal["counter", "gauge"]
    value: float
    labels: tuple[tuple[str, str], ...] = ()


def read_metrics(scheduler: Scheduler) -> list[Metric]:
    """The figures of now."""
    pool, counts = scheduler.cache.pool, scheduler.counts
    gauges = {
        "vllm:num_requests_running": scheduler.running.count,
        "vllm:num_requests_waiting": len(scheduler.waiting),
        "vllm:kv_cache_usage_perc": pool.num_held / pool.num_blocks,
    }
    counters = {
        "vllm:prefix_cache_queries": counts.prefix_queries,
        "vllm:prefix_cache_hits": counts.prefix_hits,
        "vllm:prompt_tokens": counts.prompt_tokens,
        "vllm:generation_tokens": counts.generation_tokens,
        "vllm:num_preemptions": counts.preemptions,
    }
    success = [
        Metric("vllm:request_success", "counter", count, (("finished_reason", reason),))
        for reason, count in sorted(counts.finished.items())
    ]
    return [
        *(Metric(name, "gauge", value) for name, value in gauges.items()),
        *(Metric(name, "counter", value) for name, value in counters.items()),
        *success,
    ]
