"""A feed draws often enough and not too often, shows what the trace holds, and never changes the run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import House, build
from workbench.trace import Trace
from workbench.trace.growing import Name
from workbench.trace.schema import Table
from workbench.widgets import feed as feeds
from workbench.widgets.feed import IDLE, SHORTEST, Feed, feed_of


class Wall:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A view that takes some time to draw, and remembers when it did."""

    needs: tuple[Name, ...] = ("steps", "step_requests", "requests")
    wanted = True

    def __init__(self, feed: Feed, wall: Wall, seconds: float) -> None:
        self.feed, self.wall, self.seconds = feed, wall, seconds
        self.drawn: list[tuple[float, int]] = []  # when it began, steps it saw

    def prepare(self) -> None:
        pass

    def refresh(self) -> None:
        self.feed.pull()
        self.drawn.append((self.wall.now, len(self.feed["steps"]["step"])))
        self.wall.now += self.seconds


def filled(house: House, requests: int = 12) -> House:
    for number in range(requests):
        house.add([1] * 8 + [number] * 5, 20, ignore_eos=True)
    return house


def run_watched(seconds: float, a_step: float, requests: int = 12) -> tuple[Slow, House]:
    """A run whose steps take `a_step`, watched by a view that takes `seconds`."""
    house, wall = filled(build(), requests), Wall()
    feed = Feed(house.trace, wall)
    view = Slow(feed, wall, seconds)
    feed.join(view)
    while house.engine.scheduler.has_work:
        wall.now += a_step
        house.engine.advance()
    return view, house


@pytest.mark.parametrize(("seconds", "a_step"), [(0.0, 0.01), (0.002, 0.03), (0.05, 0.06), (0.2, 1.0)])
def test_draws_keep_their_distance(seconds: float, a_step: float) -> None:
    view, house = run_watched(seconds, a_step, 80)
    count = len(house.trace.columns.steps["step"])
    begins = [began for began, seen in view.drawn if seen < count]  # the end is drawn whatever the time
    gaps = np.diff(begins) - seconds
    assert len(begins) > 2
    assert len(gaps)
    assert (gaps >= max(SHORTEST, IDLE * seconds) - 1e-9).all()
    assert seconds * len(begins) <= 0.03 * (view.wall.now - begins[0] + (1 + IDLE) * seconds)


def test_a_draw_comes_as_soon_as_it_is_due() -> None:
    view, _ = run_watched(0.0, 0.03)
    assert np.diff([began for began, _ in view.drawn]).max() <= SHORTEST + 0.03 + 1e-9


def test_the_last_draw_shows_the_end() -> None:
    view, house = run_watched(0.05, 0.001)  # far from due
    assert view.drawn[-1][1] == len(house.trace.columns.steps["step"])


def test_what_is_not_due_is_drawn_by_the_loop_when_the_cell_is_done() -> None:
    house = filled(build())

    async def cell() -> Slow:
        wall = Wall()
        feed = Feed(house.trace, wall)
        view = Slow(feed, wall, 0.0)
        feed.join(view)
        house.run()  # the loop stands still meanwhile, as in a notebook
        assert not view.drawn  # so short a run is not held up
        async with asyncio.timeout(60):
            while not view.drawn:
                await asyncio.sleep(SHORTEST)
        return view

    view = asyncio.run(cell())
    assert view.drawn[-1][1] == len(house.trace.columns.steps["step"])
    count = len(view.drawn)
    house.add([3] * 4, 2)
    house.run()  # the loop is closed by now: nothing raises
    assert house.trace.followers
    assert len(view.drawn) >= count


def test_runs_too_short_to_pay_for_a_draw_are_drawn_at_their_ends_and_as_rarely() -> None:
    house, wall = build(), Wall()
    feed = Feed(house.trace, wall)
    view = Slow(feed, wall, 0.02)
    feed.join(view)
    began = wall.now
    for number in range(400):
        house.add([1] * 4 + [number % 40], 2, ignore_eos=True)
        while house.engine.scheduler.has_work:
            wall.now += 0.01
            house.engine.advance()
    worked = wall.now - began
    assert 2 <= len(view.drawn) <= 2 + 2 * worked / (IDLE * view.seconds)
    assert len(view.drawn) * view.seconds < 0.03 * worked + 2 * view.seconds
    feed.pull()
    assert len(feed["steps"]["step"]) == len(house.trace.columns.steps["step"])


def test_time_in_which_nobody_waits_for_the_engine_pays_for_no_draw() -> None:
    view, house = run_watched(0.5, 0.01)
    view.wall.now += 1000
    seen = len(view.drawn)
    filled(house, 4)
    while house.engine.scheduler.has_work:
        view.wall.now += 0.01
        house.engine.advance()
        if house.engine.scheduler.has_work:
            assert len(view.drawn) == seen
    assert len(view.drawn) == seen + 1  # the end, which is due by now


def test_an_engine_that_works_beside_the_loop_is_not_drawn_more_often() -> None:
    house = filled(build(), 60)

    async def cell() -> tuple[Slow, float]:
        wall = Wall()
        feed = Feed(house.trace, wall)
        view = Slow(feed, wall, 0.01)
        feed.join(view)
        began = wall.now
        while house.engine.scheduler.has_work:
            wall.now += 0.02
            house.engine.advance()
            await asyncio.sleep(0.001)  # a late draw may come
        return view, wall.now - began

    view, worked = asyncio.run(cell())
    assert 2 <= len(view.drawn) <= 1 + worked / (IDLE * view.seconds)


def test_a_live_feed_holds_what_a_finished_trace_gives(tmp_path: Path) -> None:
    view, house = run_watched(0.0, 0.01)
    with house.trace.record(tmp_path / "run"):
        pass
    house.trace.to_csv(tmp_path / "tables")
    saved = Feed(Trace.load(tmp_path / "tables"))
    for name in view.needs:
        live, derived = view.feed[name], getattr(house.trace.columns, name)
        for column in live.keys() - {"prompt", "output"}:
            assert str(live[column].tolist()) == str(derived[column].tolist()), (name, column)
            assert str(saved[name][column].tolist()) == str(derived[column].tolist()), (name, column)


def test_watching_does_not_change_the_run() -> None:
    def tokens(house: House) -> list[list[int]]:
        return [request.token_ids.tolist() for request in house.requests]

    _, watched = run_watched(0.01, 0.05)
    assert tokens(watched) == tokens(filled(build(watched=False)).run())


def test_widgets_of_one_trace_share_a_feed_and_the_last_one_ends_it() -> None:
    house = build()
    first = feed_of(house.trace)
    views = [Slow(first, Wall(), 0.0) for _ in range(2)]
    for view in views:
        first.join(view)
        assert feed_of(house.trace) is first
    first.leave(views[0])
    assert house.trace.followers == (first,)
    first.leave(views[1])
    assert house.trace.followers == ()


def test_a_view_that_needs_more_gets_it_from_the_beginning() -> None:
    house = filled(build())
    feed, wall = Feed(house.trace), Wall()
    feed.join(Slow(feed, wall, 0.0))
    house.run()
    more = Slow(feed, wall, 0.0)
    more.needs = ("tokens", "blocks")
    epoch = feed.epoch
    feed.join(more)
    feed.pull()
    assert feed.epoch > epoch
    derived = house.trace.columns
    tables: list[tuple[Name, Table]] = [
        ("tokens", derived.tokens),
        ("blocks", derived.blocks),
        ("steps", derived.steps),
    ]
    for name, table in tables:
        assert len(feed[name]["step"]) == len(table["step"]) > 0


def test_what_an_engine_without_end_fills_is_let_go_as_the_ring_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MOST_LINES", 200)
    house, wall = build(max_steps=16), Wall()
    feed = Feed(house.trace, wall)
    feed.join(Slow(feed, wall, 0.0))
    for _ in range(8):
        filled(house)
        while house.engine.scheduler.has_work:
            wall.now += 0.05
            house.engine.advance()
    feed.pull()
    lines = len(feed["step_requests"]["step"])
    assert lines < 400 < house.runner.computed
    assert feed["steps"]["step"][-1] == house.trace.columns.steps["step"][-1]
    assert (np.diff(feed["steps"]["step"]) == 1).all()
