"""What holds for every widget: messages in its place, a static picture, clicks, and what it may be given."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench.widgets
from tests.trace.house import build
from workbench import LLM
from workbench.trace import Trace
from workbench.trace.pictures import theme
from workbench.widgets import CacheMap, PrefixTree, Requests, Selection, Stepper, TokenBudget, linked
from workbench.widgets.base import ON_CLICK, Widget

STEPWISE = (TokenBudget, Requests, CacheMap, Stepper)


@pytest.fixture(scope="module")
def trace() -> Trace:
    house = build(budget=12, blocks=16)
    for number in range(9):
        house.add([1] * 9 + [number] * 4, 14)
    return house.run().trace


def place(widget: Widget) -> str:
    return str(widget._place.value)


@pytest.mark.parametrize("kind", [*STEPWISE, PrefixTree])
class TestEveryWidget:
    def test_an_empty_trace_says_so_in_its_place(self, kind: type[Widget]) -> None:
        widget = kind(Trace())
        assert 'class="message"' in place(widget)
        assert "run generate" in place(widget)
        assert "run generate" in widget.static()

    def test_a_wrong_type_is_refused_with_what_to_pass(self, kind: type[Widget]) -> None:
        with pytest.raises(TypeError, match=r"source is dict: use an LLM, a Trace"):
            kind({"not": "a trace"})

    def test_a_recording_that_is_gone_says_so_in_its_place(self, kind: type[Widget], tmp_path: Path) -> None:
        house = build()
        with house.trace.record(tmp_path / "run") as recorded:
            house.add([1] * 5, 3)
            house.run()
        (tmp_path / "run" / "events.bin").unlink()
        widget = kind(recorded)
        assert "was deleted" in place(widget)
        assert "was deleted" in repr(widget)
        widget.refresh()
        widget.close()

    def test_what_cannot_be_drawn_is_a_message_and_no_traceback(
        self, kind: type[Widget], trace: Trace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Widget) -> str:
            raise LookupError("<b>broken</b>")

        widget = kind(trace)
        monkeypatch.setattr(kind, "draw", broken)
        widget.refresh()
        assert "could not be drawn" in place(widget)
        assert "<b>" not in place(widget)

    def test_the_bundle_has_the_live_view_the_picture_and_words(
        self, kind: type[Widget], trace: Trace
    ) -> None:
        bundle = kind(trace)._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert bundle["text/plain"].startswith(f"{kind.__name__}(")
        assert len(bundle["text/plain"]) < 120
        picture = bundle["text/html"]
        assert "<svg" in picture
        for fetched in ("<script", "onclick", "http", "src=", "url(", "@import"):
            assert fetched not in picture, fetched

    def test_the_static_picture_is_the_same_every_time(self, kind: type[Widget], trace: Trace) -> None:
        assert kind(trace).static() == kind(trace).static()

    def test_both_themes_and_the_legend_are_there(self, kind: type[Widget], trace: Trace) -> None:
        picture = kind(trace).static()
        assert '[data-jp-theme-light="false"] .wb' in picture
        assert "prefers-color-scheme: dark" in picture
        assert 'class="legend"' in picture
        used = {kind for kind in theme.KINDS if f'<rect class="{kind}' in picture}
        assert used
        assert all(re.search(f'<i class="{kind}[ "]', picture) for kind in used - {"finished"})

    def test_a_trace_of_tables_looks_like_the_one_recorded(
        self, kind: type[Widget], trace: Trace, tmp_path: Path
    ) -> None:
        trace.to_csv(tmp_path)
        assert kind(Trace.load(tmp_path, trace.decode)).static() == kind(trace).static()

    def test_a_closed_widget_follows_no_more(self, kind: type[Widget]) -> None:
        house = build()
        widget = kind(house.trace)
        assert house.trace.followers
        widget.close()
        assert house.trace.followers == ()


@pytest.mark.parametrize("kind", STEPWISE)
def test_names_of_requests_are_escaped(kind: type[Widget]) -> None:
    house = build()
    house.add([1] * 5, 3)
    house.requests[0].request_id = house.requests[0].tables.name = "<img src=x>&'\""
    house.run()
    widget = kind(house.trace)
    widget.selection.select(step=0, request="<img src=x>&'\"")
    assert "<img" not in widget.static()
    assert "&lt;img" in widget.static()


def test_linked_widgets_follow_one_another(trace: Trace) -> None:
    budget, requests = linked(trace, TokenBudget, Requests)
    assert 'class="here"' not in place(requests)
    budget._pick.value = "5"
    assert budget.selection.step == 5
    assert 'class="here"' in place(requests)
    assert "Step 5:" in place(budget)
    requests._pick.value = "request:3"
    assert requests.selection.request == "3"
    assert budget._pick.value == requests._pick.value == ""  # the same may be clicked again


def test_one_that_left_the_page_is_not_drawn_until_it_is_back() -> None:
    def run(widget: Widget) -> bool:
        """Whether the widget was drawn."""
        seen: list[object] = []
        widget._place.observe(seen.append, "value")
        house.add([1] * 5, 3)
        house.run()
        widget.feed._end_due = 0.0
        return bool(seen)

    house = build()
    widget = TokenBudget(house.trace)
    assert run(widget)  # it may be about to be shown
    widget._view_count = 1
    assert run(widget)
    widget._view_count = 0  # its cell ran again, and made another one
    before = place(widget)
    assert not run(widget)
    widget._view_count = 1
    assert place(widget) != before


def test_a_click_reaches_the_hidden_input_of_its_own_widget(trace: Trace) -> None:
    widget = TokenBudget(trace)
    assert f'onclick="{ON_CLICK}"' in place(widget)
    assert '"' not in ON_CLICK
    assert widget.children[-1]._dom_classes == ("wb-pick",)
    assert "wb-widget" in widget._dom_classes


@pytest.mark.parametrize("kind", [*STEPWISE, PrefixTree])
def test_a_class_is_refused_like_any_other_type(kind: type[Widget]) -> None:
    with pytest.raises(TypeError, match=r"source is type: use an LLM, a Trace"):
        kind(LLM)


def test_only_what_exists_can_be_selected() -> None:
    with pytest.raises(TypeError, match="'steps'"):
        Selection().select(steps=1)


@pytest.mark.parametrize("chosen", [{"step": "7"}, {"step": 1.5}, {"block": True}, {"request": 7}])
def test_what_is_selected_is_checked_where_it_is_said(chosen: dict[str, Any]) -> None:
    selection = Selection()
    with pytest.raises(TypeError, match=next(iter(chosen))):
        selection.select(**chosen)
    assert (selection.step, selection.request, selection.block) == (None, None, None)
    selection.select(step=np.int64(7), request="7")
    assert (type(selection.step), selection.request) == (int, "7")


@pytest.mark.parametrize("kind", STEPWISE)
def test_after_a_click_on_what_is_gone_the_picture_is_there(kind: type[Widget], trace: Trace) -> None:
    widget = kind(trace)
    for what in ("request:99999", "nothing"):
        widget._pick.value = what
        assert "<svg" in place(widget)
        assert widget.selection.step is widget.selection.request is None


def test_the_names_are_there_and_no_others() -> None:
    assert [getattr(workbench.widgets, name) for name in workbench.widgets.__all__]
    with pytest.raises(AttributeError, match="no 'Nothing'"):
        workbench.widgets.Nothing  # noqa: B018


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_loads_nothing_and_without_ipywidgets_the_remedy_is_named() -> None:
    code = (
        "import json, sys; sys.modules['ipywidgets'] = None\n"
        "import workbench.widgets; early = sorted({'torch', 'pandas', 'numpy'} & set(sys.modules))\n"
        "from workbench.widgets import TokenBudget; from workbench.trace import Trace\n"
        "try: TokenBudget(Trace())\n"
        "except RuntimeError as error: print(json.dumps([early, type(error).__name__, str(error)]))"
    )
    assert json.loads(in_a_new_process(code)) == [
        [], "MissingExtra", "widgets need ipywidgets: pip install 'workbench[notebook]'",
    ]  # fmt: skip


def test_widgets_need_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from workbench.widgets import CacheMap, PrefixTree, Requests, TokenBudget\n"
        "from workbench.trace import Trace\n"
        "TokenBudget(Trace()), Requests(Trace()), CacheMap(Trace()), PrefixTree(Trace())\n"
        "print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    )
    assert in_a_new_process(code) == "[]"
