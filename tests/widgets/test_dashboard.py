"""The dashboard's rows add up to the tables, however the time is cut, and say what is so now."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.trace.house import House, build
from tests.widgets.long import STEPS, long_run
from workbench.trace import Trace
from workbench.trace.pictures import dashboard
from workbench.trace.pictures.dashboard import COLUMNS, Row, Rows, draw, rows
from workbench.trace.schema import Table
from workbench.widgets import Dashboard, TokenBudget, linked

WINDOWS = [slice(None), slice(3, 9), slice(5, 6)]


def house_of(requests: int = 9) -> House:
    house = build(budget=12, blocks=16)
    for number in range(requests):
        house.add([1] * 9 + [number % 3] * 4, 14)
    return house.run()


@pytest.fixture(scope="module")
def steps() -> Table:
    return house_of().trace.columns.steps


@pytest.fixture(scope="module")
def long_trace() -> Trace:
    trace = Trace(None)
    for event in long_run():
        trace.observer(event)
    return trace


def row(found: Rows, title: str) -> Row:
    (one,) = (each for each in found.rows if each.title.startswith(title))
    return one


def overlaps(found: Rows, window: slice) -> Iterator[npt.NDArray[np.float64]]:
    """For each column, how much of each step in the window lies in it: seconds."""
    for low, high in zip(found.edges[:-1], found.edges[1:], strict=True):
        begins, ends = found.begins[window], found.ends[window]
        yield np.maximum(np.minimum(ends, high) - np.maximum(begins, low), 0)


@pytest.mark.parametrize("window", WINDOWS)
def test_rates_add_up_to_the_tables(steps: Table, window: slice) -> None:
    found = rows(steps, window)
    widths = np.diff(found.edges)
    amounts = {"generated": steps["sampled"] + steps["forced"], "prompt tokens computed": steps["prefill"]}
    lasted = (found.ends - found.begins)[window]
    for title, amount in amounts.items():
        one = row(found, title)
        assert (one.values * widths).sum() == pytest.approx(amount[window].sum())
        for value, width, inside in zip(one.values, widths, overlaps(found, window), strict=True):
            assert value * width == pytest.approx((amount[window] * inside / lasted).sum(), abs=1e-9)


@pytest.mark.parametrize("window", WINDOWS)
def test_levels_are_means_over_the_time_that_steps_took(steps: Table, window: slice) -> None:
    found = rows(steps, window)
    blocks = steps["blocks_held"] + steps["blocks_free"]
    levels = {
        "requests running": steps["running"],
        "requests waiting": steps["waiting"],
        "KV": 100 * steps["blocks_held"] / blocks,
    }
    for title, level in levels.items():
        for value, inside in zip(row(found, title).values, overlaps(found, window), strict=True):
            expected = (level[window] * inside).sum() / inside.sum() if inside.sum() else np.nan
            assert value == pytest.approx(expected, nan_ok=True)


def test_the_hit_rate_is_what_was_found_of_what_was_asked_for(steps: Table) -> None:
    one = row(rows(steps), "prompt tokens found")
    found, computed = int(steps["cached"].sum()), int(steps["prefill"].sum())
    assert found > 0
    assert one.note == f"{found:,} of {found + computed:,}"
    assert one.figure == f"{100 * found / (found + computed):.0f} %"


def test_where_nobody_ran_there_is_no_level_and_nothing_was_generated() -> None:
    house = house_of(3)
    house.runner.clock.now += 5.0
    for _ in range(3):
        house.add([4] * 9, 14)
    found = rows(house.run().trace.columns.steps)
    idle = np.isnan(row(found, "requests running").values)
    assert idle.sum() > 0.9 * COLUMNS  # of five seconds, the runs took some hundredths
    assert not idle[0]
    assert not idle[-1]
    assert (row(found, "generated").values[idle] == 0).all()


def test_between_steps_of_the_same_requests_there_is_no_gap(steps: Table) -> None:
    assert not np.isnan(row(rows(steps), "requests running").values).any()


def test_now_is_the_last_second_and_the_last_step(long_trace: Trace) -> None:
    steps = long_trace.columns.steps
    found = rows(steps, now=True)
    high = found.ends[-1]
    inside = np.maximum(found.ends - np.maximum(found.begins, high - 1.0), 0)
    generated = ((steps["sampled"] + steps["forced"]) * inside / (found.ends - found.begins)).sum()
    assert row(found, "generated").figure == f"{generated:,.0f}"
    assert "in the last second" in row(found, "generated").note
    assert row(found, "requests running").figure == str(steps["running"][-1])
    everything = rows(steps)
    mean = (steps["sampled"] + steps["forced"]).sum() / (high - found.edges[0])
    assert row(everything, "generated").figure == f"{mean:,.0f}"


def test_while_the_engine_has_work_the_figures_are_those_of_now() -> None:
    house = build()
    widget = Dashboard(house.trace)
    house.add([1] * 9, 14, ignore_eos=True)
    for _ in range(4):
        house.engine.advance()
    widget.refresh()
    assert "in the last second" in widget._place.value
    house.run()
    assert "in the last second" not in widget._place.value
    assert "14 in all" in widget._place.value  # nobody asked for it
    assert widget.static() == Dashboard(house.trace).static()


def test_drafts_have_a_row_where_there_are_any(steps: Table) -> None:
    assert "drafts" not in draw(rows(steps))
    drafted = steps | {"draft": np.where(steps["decode"] > 2, 2, 0)}
    drafted["accepted"] = drafted["draft"] // 2
    one = row(rows(drafted), "drafts accepted")
    count = int(drafted["draft"].sum())
    assert count > 0
    assert (one.figure, one.note) == ("50 %", f"{count // 2:,} of {count:,}")
    assert np.nanmax(np.abs(one.values - 50)) < 1e-6


def test_a_click_selects_a_step_and_one_on_many_zooms_until_it_does(long_trace: Trace) -> None:
    budget, widget = linked(long_trace, TokenBudget, Dashboard)
    for _ in range(4):
        picks = re.findall(r'data-pick="([^"]+)"', widget.static())
        assert len(picks) == COLUMNS
        widget._pick.value = picks[len(picks) // 2]
        if widget.selection.step is not None:
            break
    step = widget.selection.step
    assert step is not None
    assert f"<h4>Step {step}," in widget.static()
    assert 'class="here"' in widget.static()
    assert f"Step {step}:" in budget._place.value
    found = rows(widget.feed["steps"])
    assert found.first[0] == 0
    assert found.last[-1] >= STEPS - 1
    assert (found.first[1:] <= found.last[:-1] + 1).all()  # no step is skipped


def test_what_a_step_did_is_said_in_full(steps: Table) -> None:
    text = dashboard.step_line(steps, rows(steps), 4)
    for name in ("prefill", "cached", "running", "waiting", "blocks_held", "blocks_free"):
        assert re.search(rf"\b{steps[name][4]} ", text)
    assert f"{dashboard.counted(int(steps['sampled'][4] + steps['forced'][4]), 'token')} generated" in text


def test_a_trace_of_tables_looks_like_the_one_recorded(tmp_path: Path) -> None:
    trace = house_of().trace
    trace.to_csv(tmp_path)
    assert Dashboard(Trace.load(tmp_path)).static() == Dashboard(trace).static()
    bundle = Dashboard(trace)._repr_mimebundle_()
    generated = trace.columns.runs["output_tokens"][0]
    assert bundle["text/plain"].endswith(f"steps, {generated} tokens generated)")
    for fetched in ("<script", "onclick", "http", "src=", "url(", "@import"):
        assert fetched not in bundle["text/html"], fetched
    assert '[data-jp-theme-light="false"] .wb' in bundle["text/html"]


def test_one_token_is_not_said_to_be_several() -> None:
    house = build()
    house.add([1] * 4, 1)
    house.run()
    dashboard = Dashboard(house.trace)
    assert repr(dashboard) == "Dashboard(1 step, 1 token generated)"
    dashboard.selection.select(step=0)
    assert "1 token generated, 4 computed of prompts" in dashboard.static()


def test_without_steps_it_says_what_to_do() -> None:
    assert "run generate" in Dashboard(Trace())._place.value
    with pytest.raises(TypeError, match="use an LLM, a Trace"):
        Dashboard("steps")


def test_the_report_has_the_same_picture(tmp_path: Path) -> None:
    house = house_of()
    page = house.trace.to_report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert draw(rows(house.trace.columns.steps)) in page
