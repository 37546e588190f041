"""A live engine's figures and those of its trace are the same, in vLLM's meaning."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import House, build
from tests.trace.test_exports import one, parse
from tests.trace.test_sums import workloads
from workbench.metrics import REASONS, read_metrics


def check(house: House) -> dict[str, float]:
    """Every figure of the engine is in the trace's text; returns them."""
    families = parse(house.trace.to_prometheus())
    metrics = read_metrics(house.engine.scheduler)
    assert Counter(metric.name for metric in metrics)["vllm:request_success"] == len(REASONS)
    for metric in metrics:
        name = f"{metric.name}_total" if metric.kind == "counter" else metric.name
        kind, _ = families[name]
        assert kind == metric.kind
        if kind == "counter":  # the gauges are of now here, and of the last step there
            assert one(families, name, **dict(metric.labels)) == metric.value, metric
        assert metric.meaning
    return {metric.name: metric.value for metric in metrics if not metric.labels}


@given(
    work=workloads(), budget=st.integers(3, 40), blocks=st.integers(14, 30), depth=st.integers(0, 2),
    abort_at=st.integers(0, 30), fail_at=st.none() | st.integers(0, 20), caching=st.booleans(),
    skips=st.integers(1, 4),
)  # fmt: skip
def test_a_trace_counts_what_its_engine_counts(
    work: list[tuple[list[int], int]],
    budget: int,
    blocks: int,
    depth: int,
    abort_at: int,
    fail_at: int | None,
    caching: bool,
    skips: int,
) -> None:
    house = build(budget=budget, blocks=blocks, depth=depth, caching=caching)
    house.runner.fail_at = fail_at
    for number, (prompt, most) in enumerate(work):
        house.add(prompt, most, skip_reading_prefix_cache=number % skips == 1)
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    check(house)
    house.engine.abort(house.requests[::4])
    check(house.run())


def test_who_comes_back_after_a_preemption_counts_as_neither_query_nor_hit() -> None:
    house = build(budget=12, blocks=14)
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=6, ignore_eos=True)
    figures = check(house.run())
    prompts = sum(request.num_prompt_tokens for request in house.requests)
    assert figures["vllm:num_preemptions"] > 0
    assert figures["vllm:prefix_cache_queries"] == figures["vllm:prompt_tokens"] == prompts
    assert figures["vllm:prefix_cache_hits"] == sum(r.num_cached_tokens for r in house.requests) > 0
    admitted = house.trace.events[house.trace.events.kind == "request_admitted"]
    assert len(admitted) == len(house.requests) + figures["vllm:num_preemptions"]


@pytest.mark.parametrize(("caching", "skip"), [(False, False), (True, True)])
def test_who_does_not_read_the_cache_asks_nothing_of_it(caching: bool, skip: bool) -> None:
    house = build(caching=caching)
    for _ in range(2):
        house.add([1] * 9, max_tokens=1, skip_reading_prefix_cache=skip)
        house.run()
    figures = check(house)
    assert figures["vllm:prefix_cache_queries"] == figures["vllm:prefix_cache_hits"] == 0
    assert figures["vllm:prompt_tokens"] == 18
    assert "prefix_looked_up" not in set(house.trace.events.kind)
