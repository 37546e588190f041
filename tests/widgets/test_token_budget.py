"""The bars of the token budget add up to the tables, however they are binned, zoomed and told apart."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import build
from tests.widgets.long import long_run
from workbench.trace import Trace
from workbench.trace.pictures.token_budget import MOST_BARS, bars, draw, step_table
from workbench.trace.schema import Table, Tables
from workbench.widgets import TokenBudget


@pytest.fixture(scope="module")
def tables() -> Tables:
    house = build(budget=12, blocks=16)
    for number in range(12):
        house.add([1] * 9 + [number] * 6, 14)
    return house.run().trace.columns


@pytest.fixture(scope="module")
def long_trace() -> Trace:
    trace = Trace(None)
    for event in long_run():
        trace.observer(event)
    return trace


def test_segments_are_the_chunks(tables: Tables) -> None:
    found = bars(tables.steps, tables.step_requests)
    drawn: Counter[tuple[int, str, str]] = Counter()
    for step, segments in zip(found.first.tolist(), found.segments, strict=True):
        for segment in segments:
            drawn[step, segment.request_id, segment.kind] += segment.tokens
    c = tables.step_requests
    for kind in ("prefill", "decode"):
        lines = zip(c["step"].tolist(), c["request_id"], [kind] * len(c["step"]), strict=True)
        expected = dict(zip(lines, c[kind].tolist(), strict=True))
        assert {key: drawn[key] for key in expected} == expected
    assert sum(drawn.values()) == tables.steps["scheduled"].sum()


@pytest.mark.parametrize(
    "window", [slice(0, 37), slice(0, 200), slice(0, 201), slice(1000, 1701), slice(None)]
)
def test_bars_add_up_whatever_is_shown(long_trace: Trace, window: slice) -> None:
    widget = TokenBudget(long_trace)
    steps, chunks = widget.feed["steps"], widget.feed["step_requests"]
    found = bars(steps, chunks, window)
    sizes = found.last - found.first + 1
    assert 1 <= len(sizes) <= MOST_BARS
    assert sizes.sum() == len(steps["step"][window])
    for kind in ("prefill", "decode"):
        assert np.isclose((found.tokens[kind] * sizes).sum(), steps[kind][window].sum())
    assert found.peak.max() == steps["scheduled"][window].max()
    assert (found.peak >= sum(found.tokens.values()) - 1e-9).all()
    assert found.preempted.sum() == steps["preempted"][window].sum()
    draw(found)


def rectangles(svg: str, kind: str) -> float:
    """Heights of all rectangles of a kind, together."""
    heights = re.findall(rf'<rect class="{kind}[^>]*height="([\d.]+)"', svg)
    return sum(map(float, heights))


def test_heights_are_in_proportion_to_tokens(tables: Tables) -> None:
    svg = draw(bars(tables.steps, tables.step_requests))
    shares = [rectangles(svg, kind) / tables.steps[kind].sum() for kind in ("prefill", "decode")]
    assert shares[0] > 0
    assert shares[0] == pytest.approx(shares[1], rel=0.02)  # heights are written with one decimal


def speculative(tables: Tables) -> tuple[Table, Table]:
    """The same run, had every decode of step 9 verified three drafts, of which one was accepted."""
    steps, chunks = ({n: c.copy() for n, c in t.items()} for t in tables[2:4])
    lines = (chunks["step"] == 9) & (chunks["decode"] > 0)
    for name, more in (("decode", 3), ("scheduled", 3), ("draft", 3), ("accepted", 1), ("rejected", 2)):
        chunks[name][lines] += more
        steps[name][9] += more * lines.sum()
    return steps, chunks


def test_drafts_are_told_apart_where_there_are_any(tables: Tables) -> None:
    steps, chunks = speculative(tables)
    count = int(steps["draft"].sum()) // 3
    assert count > 1
    found = bars(steps, chunks)
    assert found.tokens["accepted"].sum() == count
    assert found.tokens["rejected"].sum() == 2 * count
    by_kind = Counter(kind for kind, tokens_, *_ in found.segments[9] for _ in range(tokens_))
    assert by_kind == {k: v[9] for k, v in found.tokens.items() if v[9]}
    total = sum(sum(segment.tokens for segment in segments) for segments in found.segments)
    assert total == steps["scheduled"].sum()
    assert "draft, rejected" in draw(found)
    assert "draft" not in draw(bars(tables.steps, tables.step_requests))


def test_a_budget_far_above_the_bars_is_drawn_apart_and_says_so(tables: Tables) -> None:
    steps = tables.steps | {"budget": np.full_like(tables.steps["budget"], 8192)}
    high = draw(bars(steps, tables.step_requests))
    assert "token budget 8,192 (not to scale)" in high
    assert rectangles(high, "decode") > 0.5 * rectangles(
        draw(bars(tables.steps, tables.step_requests)), "decode"
    )


def test_a_click_selects_a_step_and_one_on_many_steps_zooms_until_it_does(long_trace: Trace) -> None:
    widget = TokenBudget(long_trace)
    for _ in range(4):
        picks = re.findall(r'data-pick="([^"]+)"', widget.static())
        assert len(picks) <= MOST_BARS
        widget._pick.value = picks[len(picks) // 2]
        if widget.selection.step is not None:
            break
    step = widget.selection.step
    assert step is not None
    assert f"Step {step}:" in widget.static()
    assert widget.zoom._step.value == step
    widget.zoom.show_all()
    assert widget.zoom._range.value == (0, len(widget.feed["steps"]["step"]) - 1)


def test_the_sliders_do_what_clicks_do(long_trace: Trace) -> None:
    widget = TokenBudget(long_trace)
    widget.zoom._range.value = (40, 60)
    assert re.findall(r'data-pick="([^"]+)"', widget.static()) == [str(step) for step in range(40, 61)]
    widget.zoom._step.value = 50
    assert widget.selection.step == 50
    assert 'class="selected"' in widget.static()


def test_who_got_what_is_all_of_the_step(tables: Tables) -> None:
    html = step_table(tables.steps, tables.step_requests, 4)
    lines = tables.step_requests["step"] == 4
    for name in tables.step_requests["request_id"][lines]:
        assert f"<td>{name}</td>" in html
    assert html.count("<tr>") == lines.sum() + 1
    assert step_table(tables.steps, tables.step_requests, 10_000) == ""


def test_the_picture_grows_with_the_run() -> None:
    house = build()
    widget = TokenBudget(house.trace)
    assert "message" in widget._place.value
    house.add([1] * 30, 9)
    house.run()
    assert "<svg" in widget._place.value  # nobody asked for it
    assert widget.static() == TokenBudget(house.trace).static()


def test_the_report_has_the_same_picture(tables: Tables, tmp_path: Path) -> None:
    house = build(budget=12, blocks=16)
    house.add([1] * 9, 14)
    page = house.run().trace.to_report(tmp_path / "r.html").read_text(encoding="utf-8")
    columns = house.trace.columns
    assert draw(bars(columns.steps, columns.step_requests)) in page
