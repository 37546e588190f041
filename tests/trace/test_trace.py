"""The trace as people use it: a ring, scopes, frames, files, a page."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.trace.house import House, build
from workbench.__main__ import main
from workbench.trace import Trace
from workbench.trace.schema import COLUMNS, SCHEMA


@pytest.fixture(scope="module")
def busy() -> House:
    """A run with shared prefixes, chunks, preemptions and a token with a comma and a newline in its text."""
    house = build(budget=12, blocks=14)
    house.trace._decode = lambda ids: ",\n".join(f"<b>t{token_id}" for token_id in ids)
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=6, ignore_eos=True)
    return house.run()


def same(a: Trace, b: Trace) -> bool:
    for name in SCHEMA:
        for column in COLUMNS[name]:
            x, y = getattr(a.columns, name)[column.name], getattr(b.columns, name)[column.name]
            if not np.array_equal(x, y, equal_nan=column.kind == "float"):
                return False
    return True


def test_the_busy_run_has_what_the_other_tests_need(busy: House) -> None:
    totals = busy.trace.runs.iloc[0]
    assert totals["preemptions"] > 0
    assert totals["cached_tokens"] > 0
    assert totals["recomputed_tokens"] != 0


# --- frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMA)
def test_frames_have_the_documented_columns_and_dtypes(name: str, busy: House) -> None:
    dtypes = {"int": "int64", "float": "float64", "bool": "bool", "text": "string"}
    for trace in (busy.trace, Trace()):
        frame = getattr(trace, name)
        assert isinstance(frame, pd.DataFrame)
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {
            column.name: dtypes[column.kind] for column in COLUMNS[name]
        }


def test_the_sum_rule_as_people_would_write_it(busy: House) -> None:
    t = busy.trace
    r, s = t.requests, t.steps
    new = (r.prompt_tokens - r.cached_tokens).sum() + (r.output_tokens - 1).sum()
    assert s.scheduled.sum() == new + s.recomputed.sum() + s.overshoot.sum()
    assert t.step_requests.groupby("step").scheduled.sum().tolist() == s.scheduled.tolist()


def test_tables_follow_the_run() -> None:
    house = build()
    house.add([1, 2, 3])
    assert len(house.trace.steps) == 0
    house.engine.step()
    assert len(house.trace.steps) == 1
    assert repr(house.trace) == "Trace(1 steps, 1 requests, 3 tokens computed, 1 generated)"


# --- the ring and scopes --------------------------------------------------------------------------------


def test_the_ring_keeps_the_last_steps_and_what_is_known_of_their_requests() -> None:
    house = build(max_steps=3, budget=64)
    house.add([1, 2, 3], max_tokens=2, ignore_eos=True)
    house.add([4, 5, 6, 7, 8], max_tokens=10, ignore_eos=True)
    house.run()
    t = house.trace
    assert t.steps.step.tolist() == [7, 8, 9]
    assert t.runs.dropped_steps.tolist() == [7]
    assert t.requests.request_id.tolist() == ["1"]  # the other one ended before
    assert t.requests.prompt_tokens.tolist() == [5]
    assert t.tokens["index"].tolist() == [7, 8, 9]
    assert t.requests.queue_s.notna().all()


def test_the_ring_is_bounded_in_requests_that_never_ran() -> None:
    house = build(max_steps=2)
    for _ in range(1000):
        house.engine.abort([house.add([1])])
    assert len(house.trace._recorder.snapshot().events) < 250


@pytest.mark.parametrize("max_steps", [0, -1])
def test_a_ring_of_nothing_is_refused(max_steps: int) -> None:
    with pytest.raises(ValueError, match=f"max_steps is {max_steps}.*at least 1"):
        Trace(max_steps)


def test_a_scope_keeps_everything_of_its_block_and_nothing_else() -> None:
    house = build(max_steps=1)
    house.add([1, 2, 3], max_tokens=2)
    house.run()
    with house.trace.record() as t:
        house.add([1, 2, 3, 4], max_tokens=5, ignore_eos=True)
        house.run()
    house.add([9], max_tokens=1)
    house.run()
    assert t.requests.request_id.tolist() == ["1"]
    assert len(t.steps) == 5
    assert t.runs.model.tolist() == ["fake"]
    assert t.steps.scheduled.sum() == 4 + 4
    assert len(house.trace.steps) == 1


def test_a_scope_knows_the_requests_it_finds_running() -> None:
    house = build()
    house.add([1, 2, 3], max_tokens=4, ignore_eos=True)
    house.engine.step()
    with house.trace.record() as t:
        house.run()
    assert t.requests.prompt_tokens.tolist() == [3]
    assert t.tokens["index"].tolist() == [1, 2, 3]
    assert t.steps.admitted.tolist() == [0, 0, 0]


def test_a_scope_ends_with_its_block_even_when_that_raises() -> None:
    house = build()
    with pytest.raises(KeyError), house.trace.record() as t:
        raise KeyError
    house.add([1])
    house.run()
    assert len(t.steps) == 0


def test_a_recorded_run_is_the_same_run() -> None:
    def tokens(observed: bool) -> list[list[int]]:
        house = build(budget=9, blocks=14, depth=1)
        if not observed:
            house.emitter.remove(house.trace.observer)
        for number in range(6):
            house.add([1] * 6 + [number] * 5, max_tokens=8)
        house.run()
        return [request.token_ids.tolist() for request in house.requests]

    assert tokens(True) == tokens(False)


# --- the page -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects them."""

    VOID = ("meta", "br", "line", "rect", "circle", "polygon")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of_class(self, tag: str, kind: str) -> int:
        classes = [(attributes.get("class") or "").split() for name, attributes in self.tags if name == tag]
        return sum(kind in found for found in classes)


def test_the_page_is_self_contained(busy: House, tmp_path: Path) -> None:
    text = busy.trace.to_report(tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags} == set()
    assert not re.search(r"https?:|src=|href=|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_the_page_draws_every_chunk_and_every_preemption(busy: House, tmp_path: Path) -> None:
    page = Page(busy.trace.to_report(tmp_path / "r.html").read_text(encoding="utf-8"))
    chunks, steps = busy.trace.step_requests, busy.trace.steps
    bars = sum(page.of_class("rect", kind) for kind in ("prefill", "decode"))
    assert bars >= (chunks.prefill > 0).sum() + (chunks.decode > 0).sum()
    assert page.of_class("polygon", "preempted") == (steps.preempted > 0).sum()
    assert page.of_class("rect", "waiting") == len(busy.requests)
    assert page.of_class("rect", "found") == (busy.trace.requests.cached_tokens > 0).sum()


def test_texts_on_the_page_are_escaped(busy: House, tmp_path: Path) -> None:
    text = busy.trace.to_report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;t1" in text
    assert "<b>" not in text


def test_a_long_trace_makes_a_page_of_moderate_size(tmp_path: Path) -> None:
    house = build(budget=64, blocks=200, rows=8)
    for _ in range(24):
        for number in range(8):
            house.add([number] * 4, max_tokens=80, ignore_eos=True)
        house.run()
    assert len(house.trace.columns.steps["step"]) > 1000
    path = house.trace.to_report(tmp_path / "r.html")
    Page(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < 2_000_000


def test_a_page_about_nothing_is_a_page(tmp_path: Path) -> None:
    assert "nothing happened" in Trace().to_report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_report_command_makes_the_page_of_a_saved_trace(busy: House, tmp_path: Path) -> None:
    busy.trace.to_csv(tmp_path / "trace")
    assert main(["report", str(tmp_path / "trace"), "-o", str(tmp_path / "saved.html")]) == 0
    direct = busy.trace.to_report(tmp_path / "direct.html").read_text(encoding="utf-8")
    assert (tmp_path / "saved.html").read_text(encoding="utf-8") == direct


@pytest.mark.parametrize("written", ["tables", "a recording"])
def test_the_report_command_refuses_a_trace_of_nothing(
    written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if written == "tables":
        Trace().to_csv(tmp_path / "trace")
    else:
        with Trace().record(tmp_path / "trace"):
            pass
    assert main(["report", str(tmp_path / "trace"), "-o", str(tmp_path / "saved.html")]) == 2
    assert "holds a trace of nothing" in capsys.readouterr().err
    assert not (tmp_path / "saved.html").exists()


def test_a_number_in_the_place_of_the_path_is_told_what_it_may_have_meant() -> None:
    with pytest.raises(TypeError, match=r"record\(logprobs=3\)"), Trace().record(3):  # type: ignore[arg-type]
        pass
    with pytest.raises(TypeError, match="the folder is 3"):
        Trace().to_csv(3)  # type: ignore[arg-type]


# --- without pandas -------------------------------------------------------------------------------------


def test_frames_without_pandas_say_what_to_install(busy: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(RuntimeError, match=r"pip install 'workbench\[notebook\]'"):
        busy.trace.steps  # noqa: B018


def test_files_and_pages_need_no_pandas(busy: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    busy.trace.to_csv(tmp_path)
    Trace.load(tmp_path).to_report(tmp_path / "r.html")
