"""Who watches a real engine: callbacks that come and go, recordings from other threads, ids, and the end."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from enum import StrEnum
from pathlib import Path

import pytest

from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams
from workbench.__main__ import main
from workbench.engine.events import RequestFinished
from workbench.trace import Trace

PROMPT = [5, 6, 7]


def greedy(tokens: int = 4) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)


def test_a_callback_hears_what_happens_while_it_observes_and_nothing_else(open_llm: Open) -> None:
    llm, heard, more = open_llm(), [], []
    with llm.observe(heard.append), llm.trace.record() as t:
        llm.generate([PROMPT], greedy(), use_tqdm=False)
    observation = llm.observe(more.append)
    llm.generate([PROMPT], greedy(), use_tqdm=False)
    observation.end()
    observation.end()
    llm.generate([PROMPT], greedy(), use_tqdm=False)
    assert heard == t.recording().events[1:]  # which begin with how the engine started
    assert [event.request_id for event in more if isinstance(event, RequestFinished)] == ["1"]


def test_an_observation_can_end_within_its_own_callback(open_llm: Open) -> None:
    llm, heard = open_llm(), []

    def once(event: object) -> None:
        heard.append(event)
        observation.end()

    observation = llm.observe(once)
    llm.generate([PROMPT], greedy(), use_tqdm=False)
    assert len(heard) == 1


def test_what_is_no_callback_is_refused_and_so_is_a_closed_engine(open_llm: Open) -> None:
    llm = open_llm()
    with pytest.raises(TypeError, match="callback is 3: use a function"):
        llm.observe(3)
    observation = llm.observe(print)
    llm.close()
    observation.end()
    with pytest.raises(RuntimeError, match="closed"):
        llm.observe(print)


def test_a_callback_that_exits_ends_the_call_and_leaves_an_engine_in_order(open_llm: Open) -> None:
    llm = open_llm()
    (expected,) = llm.generate([PROMPT], greedy(), use_tqdm=False)

    def exits(event: object) -> None:
        raise SystemExit(3)

    llm.observe(exits)
    with pytest.raises(SystemExit):
        llm.generate([PROMPT], greedy(), use_tqdm=False)
    (output,) = llm.generate([PROMPT], greedy(), use_tqdm=False)
    assert output.outputs[0].token_ids == expected.outputs[0].token_ids


def test_a_recording_from_another_thread_begins_between_steps(open_llm: Open) -> None:
    llm, scopes = open_llm(), []
    done = threading.Event()

    def record() -> None:
        with llm.trace.record() as t:
            scopes.append(t)
            done.wait(30)

    thread = threading.Thread(target=record)
    with llm._engine.undisturbed():
        thread.start()
        thread.join(0.2)
        assert scopes == []
    while not scopes:
        thread.join(0.01)
    llm.generate([PROMPT], greedy(), use_tqdm=False)
    done.set()
    thread.join()
    assert scopes[0].requests.finish_reason.tolist() == ["length"]


def test_a_recording_can_begin_within_a_callback(open_llm: Open) -> None:
    llm, scopes = open_llm(), []

    def begins(event: object) -> None:
        if not scopes:
            scopes.append(llm.trace.record())
            scopes.append(scopes[0].__enter__())

    with llm.observe(begins):
        llm.generate([PROMPT], greedy(), use_tqdm=False)
    scopes[0].__exit__(None, None, None)
    assert scopes[1].requests.finish_reason.tolist() == ["length"]


# --- ids ------------------------------------------------------------------------------------------------


class Named(str):
    """An id of somebody's own type."""


class Kind(StrEnum):
    """Ids by name."""

    FIRST = "first"


@pytest.mark.parametrize("given", [Named("first"), Kind.FIRST])
def test_an_id_of_any_kind_of_str_is_recorded_and_found(open_llm: Open, tmp_path: Path, given: str) -> None:
    llm = open_llm()
    with llm.trace.record(tmp_path):
        name = llm.add_request(PROMPT, greedy(), request_id=given)
        assert type(name) is str
        assert name == "first"
        llm.step()
        llm.abort(given)
    assert not llm._requests.named([given])
    loaded = Trace.load(tmp_path)
    assert loaded.requests.request_id.tolist() == ["first"]
    assert loaded.requests.finish_reason.tolist() == ["abort"]


@pytest.mark.parametrize("given", ["x\ud800", Named("\udcff")])
def test_an_id_that_no_file_can_hold_is_refused(open_llm: Open, given: str) -> None:
    llm = open_llm()
    with pytest.raises(ValueError, match="half a surrogate pair.*use whole characters"):
        llm.add_request(PROMPT, greedy(), request_id=given)
    assert not llm.has_unfinished_requests()


# --- texts ----------------------------------------------------------------------------------------------


def test_the_report_of_a_recording_has_its_texts(open_llm: Open, tmp_path: Path) -> None:
    llm = open_llm()
    with llm.trace.record(tmp_path / "a") as t:
        llm.generate(["the quick fox"], greedy(), use_tqdm=False)
    direct = t.to_report(tmp_path / "direct.html").read_text(encoding="utf-8")
    assert "the quick fox" in direct
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == direct
    loaded = Trace.load(tmp_path / "a", decode=llm.get_tokenizer().decode)
    assert loaded.requests.equals(t.requests)


def test_the_report_of_a_recording_whose_tokenizer_is_gone_goes_without(
    models: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(models.folder(), tmp_path / "model")
    with LLM(str(folder), num_gpu_blocks_override=64) as llm, llm.trace.record(tmp_path / "a"):
        llm.generate([PROMPT], greedy(), use_tqdm=False)
    shutil.rmtree(folder)
    assert main(["report", str(tmp_path / "a"), "-o", str(tmp_path / "r.html")]) == 0
    assert "(no text)" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "texts are left out" in caplog.text


# --- the end --------------------------------------------------------------------------------------------


def test_a_trace_that_outlives_its_engine_keeps_no_books_alive(open_llm: Open) -> None:
    llm = open_llm()
    llm.generate([PROMPT], greedy(), use_tqdm=False)
    books, trace = weakref.ref(llm._engine.scheduler._books), llm.trace
    llm.close()
    gc.collect()
    assert books() is None
    assert trace.requests.output_tokens.tolist() == [4]
