"""The Gantt chart says what the tables say, and the same whether it grew with the run or came after it."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import House, build
from tests.trace.test_sums import workloads
from tests.widgets.long import long_run
from workbench.trace import Trace
from workbench.trace.pictures.gantt import KINDS, PREEMPTED, WAITING, alive, close_up, counts, draw, gantt
from workbench.trace.pictures.namesakes import NOBODY, Namesakes
from workbench.trace.pictures.stretches import Stretches, Work
from workbench.trace.schema import Tables
from workbench.widgets import Requests
from workbench.widgets.requests import LANES


def crowded(depth: int = 0) -> House:
    """A run with preemptions."""
    house = build(budget=12, blocks=16, depth=depth)
    for number in range(12):
        house.add([1] * 9 + [number] * 6, 14)
    return house.run()


def stretches(tables: Tables) -> Stretches:
    return Work().take(tables.requests, tables.steps, tables.step_requests)


@given(work=workloads(), depth=st.integers(0, 2), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_stretches_hold_every_chunk_however_they_grew(
    work: list[tuple[list[int], int]], depth: int, cuts: list[int]
) -> None:
    house = build(budget=12, blocks=16, depth=depth)
    for prompt, most in work:
        house.add(prompt, most)
    tables = house.run().trace.columns
    growing = Work()
    for cut in [*sorted(cuts), len(tables.step_requests["step"])]:
        some = {name: column[:cut] for name, column in tables.step_requests.items()}
        grown = growing.take(tables.requests, tables.steps, some)
    whole = stretches(tables)
    order = np.lexsort((grown.begin, grown.request)), np.lexsort((whole.begin, whole.request))
    for name in Stretches._fields:
        assert getattr(grown, name)[order[0]].tolist() == getattr(whole, name)[order[1]].tolist(), name
    r = tables.requests
    assert (
        np.bincount(whole.request, whole.tokens, len(r["request_id"])).tolist()
        == r["computed_tokens"].tolist()
    )
    assert whole.tokens[whole.kind == 2].sum() == r["overshoot_tokens"].sum()


@given(work=workloads(), depth=st.integers(0, 2))
def test_every_resumption_is_seen_in_the_chunks(work: list[tuple[list[int], int]], depth: int) -> None:
    house = build(budget=12, blocks=16, depth=depth)
    for prompt, most in work:
        house.add(prompt, most)
    tables = house.run().trace.columns
    whole = stretches(tables)
    resumed = np.bincount(whole.request[whole.resumed], minlength=len(tables.requests["request_id"]))
    assert resumed.tolist() == tables.requests["preemptions"].tolist()


def test_a_request_does_one_thing_at_a_time() -> None:
    tables = crowded().trace.columns
    spans = gantt(tables.requests, tables.steps, stretches(tables)).spans
    assert {KINDS[kind] for kind in spans.kind.tolist()} >= {"waiting", "prefill", "decode", "preempted"}
    for place in range(len(tables.requests["request_id"])):
        mine = np.flatnonzero(spans.request == place)
        mine = mine[np.lexsort((spans.end[mine], spans.begin[mine]))]
        assert (spans.begin[mine][1:] >= spans.end[mine][:-1] - 1e-9).all(), place


def test_waiting_is_the_queue_time_and_preemptions_are_all_there() -> None:
    tables = crowded().trace.columns
    spans = gantt(tables.requests, tables.steps, stretches(tables)).spans
    waiting = spans.kind == WAITING
    order = np.argsort(spans.request[waiting])
    np.testing.assert_allclose((spans.end - spans.begin)[waiting][order], tables.requests["queue_s"])
    preempted = np.bincount(spans.request[spans.kind == PREEMPTED], minlength=len(order))
    assert preempted.tolist() == tables.requests["preemptions"].tolist()
    assert preempted.sum() > 3


def test_one_that_waits_preempted_at_the_end_is_shown_so() -> None:
    house = build(budget=12, blocks=16)
    for number in range(12):
        house.add([1] * 9 + [number] * 6, 14)
    while not house.trace.columns.steps["preempted"].any():
        house.engine.advance()
    tables = house.trace.columns
    spans = gantt(tables.requests, tables.steps, stretches(tables)).spans
    (line,) = np.flatnonzero(spans.kind == PREEMPTED)
    assert tables.requests["preemptions"][spans.request[line]] == 1


def test_an_id_that_is_used_again_is_another_request() -> None:
    requests = {
        "request_id": np.array(["a", "b", "a"], object),
        "scheduled_s": np.array([1.0, 1.5, 4.0]),
    }
    names, times = np.array(["a", "b", "a", "c"], object), np.array([2.0, 2.0, 5.0, 5.0])
    known = Namesakes()
    known.take(requests)
    assert known.places(names, times).tolist() == [0, 1, 2, NOBODY]


def test_lanes_show_first_tokens_and_ends() -> None:
    tables = crowded().trace.columns
    found = gantt(tables.requests, tables.steps, stretches(tables))
    lanes = alive(found, tables.requests)
    svg = draw(found, tables.requests, lanes)
    assert svg.count('class="first"') == svg.count('class="finished"') == len(lanes) == 12
    assert svg.count('<rect class="waiting"') == 12
    assert svg.count('<rect class="preempted"') == tables.requests["preemptions"].sum()


def test_what_everybody_does_adds_up_to_who_is_there() -> None:
    tables = crowded().trace.columns
    found = gantt(tables.requests, tables.steps, stretches(tables))
    count = counts(found, 50)
    width = (found.high - found.low) / 50
    times = found.low + width * (np.arange(50) + 0.5)
    r = tables.requests
    there = [((r["arrived_s"] <= t) & (r["finished_s"] > t)).sum() for t in times]
    assert (np.sum(list(count.values()), axis=0) <= there).all()  # between two steps nobody is busy
    waiting = [((r["arrived_s"] <= t) & (r["scheduled_s"] > t)).sum() for t in times]
    assert count["waiting"].tolist() == waiting


def test_many_requests_are_counted_and_gone_through() -> None:
    trace = Trace(None)
    for event in long_run():
        trace.observer(event)
    widget = Requests(trace)
    assert widget.static().count('data-pick="request:') == LANES
    assert 'data-pick="time:' in widget.static()
    widget.page.value = 500
    assert 'data-pick="request:500"' in widget.static()
    widget.selection.select(request="3000")  # in another widget, say
    assert 'data-pick="request:3000"' in widget.static()
    assert "Request 3000" in widget.static()
    widget._pick.value = re.findall(r'data-pick="(time:[^"]+)"', widget.static())[80]
    first, last = widget.zoom._range.value
    assert 0 < last - first < 200


def test_a_close_up_shows_the_time_of_its_requests() -> None:
    tables = crowded().trace.columns
    whole = gantt(tables.requests, tables.steps, stretches(tables))
    part = close_up(whole, tables.requests, np.arange(3))
    assert part.low == tables.requests["arrived_s"][:3].min()
    assert part.high == tables.requests["finished_s"][:3].max() < whole.high


def test_lanes_go_along_with_what_runs_until_somebody_moves_them() -> None:
    house = build(rows=4)
    widget = Requests(house.trace)
    for number in range(80):
        house.add([number % 7] * 6, 6, ignore_eos=True)
    for _ in range(90):
        house.engine.advance()
    widget.refresh()
    went = widget.page.value
    assert went > 5
    widget.page.value = 2
    for _ in range(20):
        house.engine.advance()
    widget.refresh()
    assert widget.page.value == 2


def test_the_picture_grows_with_the_run() -> None:
    house = build()
    widget = Requests(house.trace)
    house.add([1] * 30, 9)
    house.run()
    assert "<svg" in widget._place.value
    assert widget.static() == Requests(house.trace).static()
    assert repr(widget) == "Requests(1 requests, 1 finished, 0 preemptions)"
