"""Every token says what the table says of it, and two runs part where they do."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import build
from tests.widgets.logprobs_seen import TOKEN, entries, house_of, output_of, place, rows, titles
from tests.widgets.test_speed import FIRST_S, LARGEST, UPDATE_S, best_of_three
from workbench import CompletionOutput, RequestOutput
from workbench.token_logprobs import Logprob
from workbench.trace import Trace
from workbench.trace.pictures import logprobs as pictures
from workbench.trace.pictures.logprobs import EDGES, LABELS, levels
from workbench.widgets import Logprobs, TokenBudget, linked


def test_every_token_says_what_the_table_says() -> None:
    house = house_of([1] * 9, [2] * 7)
    table = house.trace.columns.tokens
    widget = Logprobs(house.trace)
    for number, name in enumerate(("0", "1")):
        widget.request.value = number
        lines = np.flatnonzero(table["request_id"] == name)
        said = titles(widget)
        assert len(said) == len(lines) > 5
        for line, title in zip(lines, said, strict=True):
            probability = 100 * math.exp(table["logprob"][line])
            assert title.startswith(f"token {table['index'][line]}: “t{table['token_id'][line]}”")
            assert f"{probability:.3g} %, logprob {table['logprob'][line]:.4g}" in title
            assert f"rank {table['rank'][line]:.0f}, entropy 0 nats" in title
            assert f"step {table['step'][line]}" in title
            assert "1. 100 %" in title  # what the fake runner holds to be the likeliest


@pytest.mark.parametrize("by", pictures.BY)
def test_a_level_rises_with_surprise_and_its_label_says_where_it_begins(by: pictures.By) -> None:
    edges = EDGES[by]
    assert len(LABELS[by]) == len(edges) + 1
    assert (np.diff(edges) > 0).all()
    between = (np.concatenate([[0], edges]) + np.append(edges, 2 * edges[-1])) / 2
    assert levels(between, by).tolist() == list(range(len(edges) + 1))
    assert levels(edges, by).tolist() == list(range(len(edges)))  # the edge is still in
    assert levels([np.nan, np.inf], by).tolist() == [-1, len(edges)]


def test_a_control_picks_what_the_colours_mean() -> None:
    widget = Logprobs(house_of([1] * 9).trace)
    found = {}
    for by in pictures.BY:
        widget.by.value = by
        found[by] = re.findall(r'<span class="(s\d)', place(widget))
        assert LABELS[by][0] in unescape(place(widget))
    table = widget.feed["tokens"]
    for by in ("logprob", "rank"):
        values = -table["logprob"] if by == "logprob" else table["rank"]
        assert found[by] == [f"s{level}" for level in levels(values, by)]
    assert set(found["entropy"]) == {"s0"}


def test_without_logprobs_it_says_how_to_ask() -> None:
    widget = Logprobs(house_of([1] * 9, logprobs=None).trace)
    assert "no token has logprobs" in place(widget)
    assert "record(logprobs=5)" in place(widget)
    assert "run generate" in place(Logprobs(Trace()))


def test_of_a_request_without_them_it_says_so_and_shows_the_others() -> None:
    house = build()
    for number in range(2):
        house.add([1] * 6, 5, logprobs=number or None, ignore_eos=True)
    widget = Logprobs(house.run().trace)
    assert len(titles(widget)) == 5  # of the one that has some
    widget.request.value = 0
    assert "request 0 has no logprobs" in place(widget)
    widget.request.value = 1
    assert len(titles(widget)) == 5


def test_a_click_shows_the_alternatives_and_selects_the_step() -> None:
    house = house_of([1] * 9)
    budget, widget = linked(house.trace, TokenBudget, Logprobs)
    widget._pick.value = "token:4"
    table = house.trace.columns.tokens
    assert widget.selection.step == table["step"][4]
    assert f"Step {widget.selection.step}:" in budget._place.value
    assert "Instead of token 4" in place(widget)
    assert re.search(rf"class=taken><td title=\"id {table['token_id'][4]}\">", place(widget))
    budget._pick.value = "6"
    assert re.search(r'data-pick="token:6"><span class="s\d here"', place(widget))


def test_a_request_that_is_selected_elsewhere_is_shown() -> None:
    widget = Logprobs(house_of([1] * 9, [2] * 7).trace)
    widget.selection.select(request="0")
    assert "Request 0:" in place(widget)
    assert widget.request.value == 0
    widget.request.value = 1
    assert widget.selection.request == "1"
    widget.selection.select(request="nobody")
    assert "Request 1:" in place(widget)


def test_an_id_that_comes_again_is_another_request() -> None:
    house = build()
    for _ in range(2):
        house.add([len(house.requests)] * 9, 6, logprobs=1, ignore_eos=True).request_id = "again"
        house.run()
    widget = Logprobs(house.trace)
    assert widget.request.max == 1
    both = []
    for number in range(2):
        widget.request.value = number
        both.append(titles(widget))
    assert [len(each) for each in both] == [6, 6]
    assert both[0] != both[1]


def test_it_grows_with_the_run_and_looks_like_the_one_recorded(tmp_path: Path) -> None:
    house = build()
    widget = Logprobs(house.trace)
    house.add([1] * 9, 14, logprobs=1, ignore_eos=True)
    house.run()
    assert len(titles(widget)) == 14  # nobody asked for it
    house.trace.to_csv(tmp_path)
    saved = Logprobs(Trace.load(tmp_path))
    assert saved.static() == Logprobs(house.trace).static()


def test_what_users_and_tokens_spell_is_escaped() -> None:
    house = build()
    house.add([1] * 9, 5, logprobs=1, ignore_eos=True).request_id = "<img src=x>&'\""
    house.trace._decode = lambda ids: "".join(f"<b>{token_id}\"'" for token_id in ids)
    widget = Logprobs(house.run().trace, beside=house.trace, names=("<i>", "</p>"))
    for tag in ("<img", "<b>", "<i>"):
        assert tag not in widget.static()
    assert "&lt;img" in widget.static()
    assert "“<b>" in titles(widget)[0]


def test_the_report_has_the_same_text(tmp_path: Path) -> None:
    house = house_of([1] * 9)
    page = house.trace.to_report(tmp_path / "r.html").read_text(encoding="utf-8")
    (text,) = re.findall(r"<div class=passage>.*?</div>", page, re.DOTALL)
    assert text.replace(" chosen", "") in place(Logprobs(house.trace)).replace(" chosen", "")
    assert "How likely" not in house_of([1] * 9, logprobs=None).trace.to_report(tmp_path / "n").read_text()


# --- two runs -------------------------------------------------------------------------------------------


def changed(output: RequestOutput, at: int, token_id: int) -> RequestOutput:
    (one,) = output.outputs
    token_ids = [*one.token_ids[:at], token_id, *one.token_ids[at + 1 :]]
    logprobs = list(entries(output))
    logprobs[at] = {token_id: Logprob(-1.0, 3, "else"), **logprobs[at]}
    return RequestOutput("7", None, [1], None, [CompletionOutput(0, "", token_ids, None, logprobs)], True)


@pytest.mark.parametrize("at", [0, 11, 29])
def test_the_first_difference_is_marked(at: int) -> None:
    output = output_of(30)
    widget = Logprobs(output, beside=changed(output, at, 49_000))
    bars = re.findall(r'class="t two parts[^"]*" data-pick="token:(\d+)"', place(widget))
    assert bars == [str(at)]
    assert f"They part at token {at} (the bar)" in place(widget)
    assert f"Instead of token {at}" in place(widget)  # it is what one wants to know
    for index, (above, below) in rows(widget).items():
        assert (above == below) is (index != at)


def test_where_nothing_differs_it_says_so_and_the_longer_goes_on_alone() -> None:
    widget = Logprobs(output_of(30), beside=output_of(30))
    assert "The 30 tokens that both have are the same." in place(widget)
    assert "parts" not in place(widget).split("Instead of")[0]
    (one,) = output_of(30).outputs
    short = CompletionOutput(0, "", one.token_ids[:12], None, list(one.logprobs or ())[:12])
    shorter = Logprobs(output_of(30), beside=RequestOutput("0", None, [1], None, [short], True))
    assert "The 12 tokens that both have are the same." in place(shorter)
    assert [bool(below) for _, below in rows(shorter).values()] == [True] * 12 + [False] * 18


def test_two_traces_are_matched_by_id_or_by_order() -> None:
    first, second = house_of([1] * 9, [2] * 7), house_of([2] * 7, [1] * 9)
    widget = Logprobs(first.trace, beside=second.trace)
    widget.request.value = 0
    assert "They part at token 0" in place(widget)  # the ids are the same, and the prompts are not
    for request, name in zip(second.requests, "xy", strict=True):
        request.request_id = name
    assert "Request 1 and 1:" not in place(widget)
    assert "Above: the first. Below: the second." in place(widget)


def test_a_widget_beside_another_engine_follows_both_and_leaves_both() -> None:
    houses = [build(), build()]
    widget = Logprobs(houses[0].trace, beside=houses[1].trace)
    for house in houses:
        house.add([1] * 9, 14, logprobs=1, ignore_eos=True)
        house.run()
    assert "The 14 tokens that both have are the same." in place(widget)
    widget.close()
    assert [house.trace.followers for house in houses] == [(), ()]


# --- many tokens ----------------------------------------------------------------------------------------


def test_a_long_text_is_shown_in_parts_and_the_skyline_has_all_of_it() -> None:
    widget = Logprobs(output_of(2_000))
    parts = [int(first) for first in re.findall(r'data-pick="part:(\d+)"', place(widget))]
    assert parts[0] == 0
    assert len(parts) <= pictures.MOST_COLUMNS
    ends = [*parts[1:], 2_000]
    assert sum(end - first for first, end in zip(parts, ends, strict=True)) == 2_000
    assert rows_of_one(widget)[0] == 0
    widget._pick.value = f"part:{parts[100]}"
    assert rows_of_one(widget)[0] == parts[100] == widget.page.value
    widget.page.value = widget.page.max
    assert rows_of_one(widget)[-1] == 1_999


def rows_of_one(widget: Logprobs) -> list[int]:
    return [int(index) for index, _ in TOKEN.findall(widget.static())]


def test_a_long_text_goes_along_with_the_run() -> None:
    trace, house = Trace(None), build()
    house.add([1] * 3, 60, logprobs=1, ignore_eos=True)
    house.run()
    widget = Logprobs(trace)
    assert "run generate" in place(widget)
    for event in house.trace.recording().events:
        trace.observer(event)
        widget.refresh()
    assert rows_of_one(widget)[-1] == 59


@pytest.mark.parametrize("by", pictures.BY)
def test_100_000_tokens_are_drawn_in_time(by: pictures.By) -> None:
    output = output_of(100_000)

    def first() -> None:
        widget = Logprobs(output)
        assert len(widget.static()) < LARGEST
        widget.close()

    assert best_of_three(first) < FIRST_S
    widget = Logprobs(output)
    widget.by.value = by
    assert best_of_three(widget.refresh) < UPDATE_S
