"""Whatever a widget is given, a message stands in its place, and no traceback reaches the notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench.widgets
from tests.trace.house import build
from workbench import LLM, SamplingParams
from workbench.trace import Trace
from workbench.widgets import Logprobs
from workbench.widgets.base import Widget

EVERY = [getattr(workbench.widgets, name) for name in workbench.widgets.__all__]
EVERY = [kind for kind in EVERY if isinstance(kind, type) and issubclass(kind, Widget)]
every_kind = pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)


def place(widget: Widget) -> str:
    return str(widget._place.value)


@pytest.fixture(scope="module")
def empty() -> LLM:
    with LLM("zoo/wren-1m", max_num_seqs=2) as llm:
        pass
    return llm


@pytest.fixture(scope="module")
def used() -> LLM:
    with LLM("zoo/wren-1m", max_num_seqs=2) as llm:
        llm.generate("the owl", SamplingParams(max_tokens=2, logprobs=1), use_tqdm=False)
    return llm


@every_kind
def test_an_empty_trace_says_so(kind: type[Widget], tmp_path: Path) -> None:
    Trace().to_csv(tmp_path)
    for trace in (Trace(), Trace.load(tmp_path)):
        widget = kind(trace)
        assert 'class="message"' in place(widget)
        assert 'class="message"' in widget._repr_mimebundle_()["text/html"]
        assert repr(widget).startswith(f"{kind.__name__}(")


@every_kind
def test_a_closed_engine_says_so(kind: type[Widget], empty: LLM, used: LLM) -> None:
    assert "the engine is closed: make a new one" in place(kind(empty))
    widget = kind(used)
    assert "The engine is closed; this is its trace." in place(widget)
    assert 'class="message"' not in place(widget)


@every_kind
def test_an_engine_that_is_closed_later_still_shows_its_trace(kind: type[Widget]) -> None:
    with LLM("zoo/wren-1m", max_num_seqs=2) as llm:
        widget = kind(llm)
        llm.generate("the owl", SamplingParams(max_tokens=2, logprobs=1), use_tqdm=False)
    widget.selection.select(step=1)
    widget.refresh()
    assert "could not be drawn" not in place(widget)
    assert "Traceback" not in place(widget)


@every_kind
def test_a_click_on_what_is_not_there_raises_nothing(kind: type[Widget], used: LLM) -> None:
    for pick in ("nonsense", "step:9999", "block:-4", "request:9999", "99999:99", "run:", "drop:nobody"):
        widget = kind(used)
        widget._pick.value = pick
        assert widget._pick.value == ""
        assert "Traceback" not in place(widget)


def test_a_trace_without_logprobs_says_how_to_get_them() -> None:
    house = build()
    house.add([1] * 5, 3)
    widget = Logprobs(house.run().trace)
    assert "logprobs" in place(widget)
