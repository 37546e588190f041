"""Recordings of one engine beside, within and after one another, in one thread or many."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.trace.house import build
from tests.trace.test_files import same
from workbench.engine.events import RequestAdmitted, RequestArrived, RequestFinished
from workbench.trace import Trace
from workbench.trace.frames import frame
from workbench.trace.journal import FILE, MAGIC, _header
from workbench.trace.recorder import Recorder


def two_requests(house, tokens: int = 4) -> None:
    for number in range(2):
        house.add([number + 1] * 5, max_tokens=tokens, ignore_eos=True)
    house.run()


# --- where the file went --------------------------------------------------------------------------------


def test_a_recording_stays_where_it_began_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with house.trace.record("here") as t, house.trace.record() as memory:
        two_requests(house)
        monkeypatch.chdir(tmp_path / "other")
        assert same(t, memory)
        two_requests(house)
    assert same(t, memory)
    assert same(Trace.load(tmp_path / "here", decode=house.trace._decode), memory)


def test_a_recording_that_is_deleted_under_way_is_read_until_it_is_closed(tmp_path: Path) -> None:
    house = build()
    with house.trace.record(tmp_path / "a") as t, house.trace.record() as memory:
        two_requests(house)
        shutil.rmtree(tmp_path / "a")
        two_requests(house)
        assert same(t, memory)
        house.add([1])  # or what was derived last is still right
    assert t.cut_off == "the recording was deleted or moved while it was made"
    with pytest.raises(FileNotFoundError, match="deleted, moved or replaced.*Trace.load"):
        t.steps  # noqa: B018


@pytest.mark.parametrize("tokens", [4, 9])
def test_a_trace_never_shows_what_was_recorded_in_its_place_later(tmp_path: Path, tokens: int) -> None:
    house = build()
    with house.trace.record(tmp_path / "a") as first:
        two_requests(house)
    shutil.rmtree(tmp_path / "a")
    with house.trace.record(tmp_path / "a") as second:
        two_requests(house, tokens)
    assert second.requests.request_id.tolist() == ["2", "3"]
    with pytest.raises(FileNotFoundError, match="deleted, moved or replaced"):
        first.steps  # noqa: B018
    assert "deleted, moved or replaced" in repr(first)


@pytest.mark.parametrize("path", ["", "a\0b", "a\ud800"])
def test_a_path_that_names_no_folder_is_refused(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    house = build()
    with pytest.raises(ValueError, match="the folder is .*: name one"), house.trace.record(path):
        pytest.fail("the block ran")
    for use in (house.trace.to_csv, house.trace.to_jsonl, Trace.load):
        with pytest.raises(ValueError, match="the folder is .*: name one"):
            use(path)
    assert os.listdir(tmp_path) == []
    assert house.trace._scopes == ()


# --- scopes of scopes, and threads ----------------------------------------------------------------------


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_a_scope_of_a_scope_knows_as_much(tmp_path: Path, outer: bool, inner: bool) -> None:
    house = build(max_steps=2)
    house.add([1, 2, 3], max_tokens=12, ignore_eos=True)
    house.engine.step()
    with house.trace.record(tmp_path / "outer" if outer else None) as a:
        house.engine.step()
        with a.record(tmp_path / "inner" if inner else None) as b:
            house.run()
    assert b.runs.model.tolist() == a.runs.model.tolist() == ["fake"]
    assert b.runs.config.tolist() == a.runs.config.tolist()
    assert b.requests.prompt_tokens.tolist() == [3]
    assert len(b.steps) == len(a.steps) - 1


class Slow(tuple):
    """Takes its time to be read, so that threads meet there."""

    def __iter__(self):
        time.sleep(0.05)
        return super().__iter__()


def test_scopes_that_begin_in_two_threads_both_hear() -> None:
    house, scopes, done = build(), [], threading.Event()

    def record() -> None:
        with house.trace.record() as t:
            scopes.append(t)
            done.wait(30)

    house.trace._scopes = Slow()
    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(scopes) < 2:
        time.sleep(0.01)
    two_requests(house)
    done.set()
    for thread in threads:
        thread.join()
    assert [len(scope.requests) for scope in scopes] == [2, 2]
    assert house.trace._scopes == ()


def test_a_request_is_open_until_it_ends_whoever_had_its_id_before() -> None:
    recorder = Recorder()
    arrived = RequestArrived(0.0, "a", build().add([1]).prompt_token_ids, 4, 0, b"")
    admitted = RequestAdmitted(1.0, 0, "a", 0, 1, 1, 0, 0, False)
    ended = RequestFinished(2.0, "a", "stop", None, 0, 0)
    for events, known in (
        ([arrived, admitted], [arrived, admitted]),
        ([ended], []),
        ([arrived], [arrived]),
        ([admitted, ended], []),
    ):
        for event in events:
            recorder(event)
        assert recorder.open_requests() == known


# --- copies and damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_trace_says_what_to_copy_instead(make) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled or copied: its tables can.*Trace\.load"):
        make(build().trace)


@pytest.mark.parametrize("head", [b"{}", b"[]", b"no JSON", b'{"schema":3}', b"\xff", b"7", b"[" * 100_000])
def test_a_header_that_is_none_is_damage(tmp_path: Path, head: bytes) -> None:
    (tmp_path / FILE).write_bytes(MAGIC + frame(head))
    with pytest.raises(ValueError, match=r"events\.bin begins with .*: it is damaged"):
        Trace.load(tmp_path)


FINISHED = '"RequestFinished",{"at":["float"],"request_id":["none"],"reason":["none"],"stop_reason":["none"]'


@pytest.mark.parametrize(
    "head",
    [
        '[1,["none"]]',
        '[1,["int","<i4"]]',
        '[-1,["none"]]',
        '[1000000000000,["none"]]',
        '["1",["none"]]',
        '[null,["none"]]',
        '[1,["tuple",["none"]]]',
        '[1,["shaped",[[100000,100000,100000],["none"]]]]',
        '[1,["shaped",[[100000,100000,100000],"<f8"]]]',
        "{}",
        "[" * 100_000,
        '[1,["record","SamplingParams",{}]]',
        '[1,["record","StepCommitted",{"at":["float"],"result":["none"],"request_ids":["none"],"taken":["none"],'
        '"overshoot":["none"],"commit_s":["none"]}]]',
        '[1,["record",' + FINISHED + ',"num_output_tokens":["none"],"num_preemptions":["none"]}]]',
        '[1,["record","StepPlanned",{"at":["float"],"plan":["none"],"request_ids":["none"],"running":["none"],'
        '"waiting":["none"],"blocks_free":["none"],"blocks_held":["none"],"blocks_cached":["none"],'
        '"recomputed":["none"],"plan_s":["none"]}]]',
        '[1,["record","EngineStarted",{"at":["none"],"config":["none"]}]]',
    ],
)
def test_a_frame_of_no_events_is_damage(tmp_path: Path, head: str) -> None:
    body = b"\xff\xff\xff\x7f" * 8
    (tmp_path / FILE).write_bytes(MAGIC + frame(_header()) + frame(head.encode(), body))
    with pytest.raises(ValueError, match=r"events\.bin.* damaged"):
        Trace.load(tmp_path).columns  # noqa: B018


def test_a_decoder_s_own_fault_is_not_called_damage(tmp_path: Path) -> None:
    house = build()
    with house.trace.record(tmp_path):
        two_requests(house)
    with pytest.raises(LookupError, match="no such token"):
        Trace.load(tmp_path, decode=lambda ids: faulty()).columns  # noqa: B018


def faulty() -> str:
    raise LookupError("no such token")
