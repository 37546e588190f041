"""The tables agree with one another, with the requests, and with what the runner computed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import House, build

FULL = ("stop", "length")  # ends at which nothing was left to compute


def check(house: House) -> None:
    tables, requests = house.trace.columns, house.requests
    r, s, c, t = tables.requests, tables.steps, tables.step_requests, tables.tokens

    # against the runner and the requests
    assert s["scheduled"].sum() == house.runner.computed
    assert r["request_id"].tolist() == [request.request_id for request in requests]
    assert r["cached_tokens"].tolist() == [request.num_cached_tokens for request in requests]
    assert r["preemptions"].tolist() == [request.num_preemptions for request in requests]
    assert r["overshoot_tokens"].tolist() == [request.num_overshoot for request in requests]
    assert r["finish_reason"].tolist() == [request.finish_reason for request in requests]
    for line, request in enumerate(requests):
        generated = request.token_ids[request.num_prompt_tokens :].tolist()
        mine = t["request_id"] == request.request_id
        assert t["token_id"][mine].tolist() == generated
        assert t["index"][mine].tolist() == list(range(len(generated)))
        assert r["output"][line] == " ".join(f"t{token_id}" for token_id in generated)

    # steps against requests in steps
    assert (s["scheduled"] == s["prefill"] + s["decode"]).all()
    assert (s["scheduled"] <= s["budget"]).all()
    for name in ("scheduled", "prefill", "decode", "recomputed", "cached"):
        by_step = [c[name][c["step"] == step].sum() for step in s["step"]]
        assert s[name].tolist() == by_step, name
    assert s["overshoot"].tolist() == [
        c["scheduled"][(c["step"] == i) & c["dropped"]].sum() for i in s["step"]
    ]
    assert s["requests"].tolist() == [(c["step"] == step).sum() for step in s["step"]]
    for name, forced in (("sampled", False), ("forced", True)):
        mine = t["step"][t["forced"] == forced]
        assert s[name].tolist() == [(mine == step).sum() for step in s["step"]]
    assert s["preempted"].sum() == r["preemptions"].sum()

    # requests against their chunks
    for line, name in enumerate(r["request_id"]):
        mine = c["request_id"] == name
        assert r["computed_tokens"][line] == c["scheduled"][mine].sum()
        assert r["recomputed_tokens"][line] == c["recomputed"][mine].sum()

    # the sum rule, request by request
    full = np.isin(r["finish_reason"], FULL)
    new = r["prompt_tokens"] - r["cached_tokens"] + r["output_tokens"] - 1
    assert (r["computed_tokens"] == new + r["recomputed_tokens"] + r["overshoot_tokens"])[full].all()


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[list[int], int]]:
    """Prompts that share prefixes and differ in length, each with its max_tokens."""
    stem = draw(st.integers(0, 20))
    sizes = st.tuples(st.integers(0, stem), st.integers(1, 20), st.integers(1, 12))
    return [([1] * shared + [2 + number % 7] * own, most) for number, (shared, own, most) in
            enumerate(draw(st.lists(sizes, min_size=1, max_size=10)))]  # fmt: skip


@given(
    work=workloads(),
    budget=st.integers(3, 40),
    blocks=st.integers(14, 30),
    depth=st.integers(0, 2),
    abort_at=st.integers(0, 40),
)
def test_tables_add_up_whatever_happens(
    work: list[tuple[list[int], int]], budget: int, blocks: int, depth: int, abort_at: int
) -> None:
    house = build(budget=budget, blocks=blocks, depth=depth)
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[::4])
    house.run()
    check(house)
