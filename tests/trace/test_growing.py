"""Tables that grow event by event end as what is derived from all events at once, wherever they are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import House, build
from tests.trace.test_sums import workloads
from workbench.engine.events import Event
from workbench.trace.growing import GrowingTables, Name
from workbench.trace.schema import Table

NAMES: tuple[Name, ...] = ("requests", "steps", "step_requests", "tokens", "blocks")
TEXTS = ("prompt", "output")  # of requests; not worked out as tables grow


def equal(grown: Table, derived: Table, lines: int | None = None) -> None:
    assert grown.keys() == derived.keys()
    for name in grown.keys() - set(TEXTS):
        expected = derived[name][:lines]
        assert grown[name].dtype == expected.dtype, name
        if expected.dtype.kind == "f":
            np.testing.assert_array_equal(grown[name], expected, err_msg=name)
        else:
            assert grown[name].tolist() == expected.tolist(), name


def disturbed(work: list[tuple[list[int], int]], depth: int, abort_at: int, fail_at: int | None) -> House:
    """A run with preemptions, aborts and perhaps a step that fails."""
    house = build(budget=12, blocks=16, depth=depth)
    house.runner.fail_at = fail_at
    for number, (prompt, most) in enumerate(work):
        house.add(prompt, most, logprobs=(None, 1)[number % 2])
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[::4])
    return house.run()


@given(
    work=workloads(),
    depth=st.integers(0, 2),
    abort_at=st.integers(0, 40),
    fail_at=st.none() | st.integers(0, 20),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_tables_grow_to_what_is_derived_from_all_events(
    work: list[tuple[list[int], int]], depth: int, abort_at: int, fail_at: int | None, cuts: list[int]
) -> None:
    house = disturbed(work, depth, abort_at, fail_at)
    events = house.trace.recording().events
    tables = GrowingTables((*NAMES, "likelihoods"), house.trace.decode)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(events)], strict=True):
        tables.take(events[begin:end])
    for name in NAMES:
        equal(tables[name], getattr(house.trace.columns, name))


def test_a_line_that_is_there_never_changes() -> None:
    house = disturbed([([1] * 20 + [k] * 9, 12) for k in range(8)], 2, 9, None)
    tables = GrowingTables((*NAMES, "likelihoods"), house.trace.decode)
    events: list[Event] = house.trace.recording().events
    sizes = set()
    for event in events:
        tables.take([event])
        sizes.add(len(tables["steps"]["step"]))
        for name in ("steps", "step_requests", "tokens"):
            equal(tables[name], getattr(house.trace.columns, name), len(next(iter(tables[name].values()))))
    assert len(sizes) > 20  # and it did grow


def test_blocks_keep_their_places_across_cuts() -> None:
    house = disturbed([([1] * 20 + [k] * 9, 12) for k in range(8)], 0, 9, None)
    tables = GrowingTables(("blocks",))
    for event in house.trace.recording().events:
        tables.take([event])
    equal(tables["blocks"], house.trace.columns.blocks)
    assert "evicted" in tables["blocks"]["event"].tolist()  # whose places earlier events said


def test_a_follower_hears_what_comes_and_gets_what_was_kept() -> None:
    house = build()
    house.add([1] * 9, 6)
    house.engine.advance()
    heard: list[Event] = []
    kept = house.trace.follow(heard.append)
    house.run()
    assert kept.events
    assert heard
    assert kept.events + heard == house.trace.recording().events
    house.trace.unfollow(house.trace.followers[0])
    before = len(heard)
    house.add([2] * 9, 6)
    house.run()
    assert len(heard) == before


def test_a_follower_that_raises_is_set_aside_and_the_trace_goes_on() -> None:
    def broken(event: Event) -> None:
        raise LookupError("broken")

    house, undisturbed = build(), build()
    house.trace.follow(broken)
    for one in (house, undisturbed):
        one.add([1] * 9, 6)
        one.run()
    assert house.trace.followers == ()
    assert (
        house.trace.columns.tokens["token_id"].tolist()
        == undisturbed.trace.columns.tokens["token_id"].tolist()
    )
