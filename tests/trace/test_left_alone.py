"""A recording that nobody tells of anything for a while: a thread writes what waits, and leaves with it."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import build
from tests.trace.test_journal import StandingClock, full_disk
from workbench.engine.events import RequestArrived, RequestFinished
from workbench.trace import Trace, journal
from workbench.trace.journal import FILE, MOST_WAITING, SECONDS, Journal, read_journal

LEFT_ALONE = """
import sys, time
from tests.trace.house import build
house = build(budget=24, blocks=200)
with house.trace.record(path=sys.argv[1]) as t:
    for number in range(3):
        house.add([number] * 5, max_tokens=20, ignore_eos=True)
        house.engine.advance()
    house.add([9], max_tokens=20)
    print(t._kept.num_events, flush=True)
    time.sleep(60)  # nobody steps, nobody tells of anything
"""


def test_what_a_hand_left_open_is_there_after_a_second_though_nothing_follows(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE, str(tmp_path / "trace")],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with child:
        told = int(child.stdout.readline())
        time.sleep(1.6 * SECONDS)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    trace = Trace.load(tmp_path / "trace")
    assert len(read_journal(tmp_path / "trace").events) == told
    assert trace.steps.status.tolist() == ["committed"] * 3
    assert len(trace.requests) == 4
    assert trace.requests.finish_reason.isna().all()


ARRIVED = RequestArrived(0.0, "a", np.arange(3, dtype=np.int32), 4, 0, b"")


def recording_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "workbench-recording"}


def comes_true(condition: Callable[[], bool], seconds: float = 10 * SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_an_event_waits_for_a_second_and_no_longer(tmp_path: Path) -> None:
    clock = StandingClock()
    writer = Journal(tmp_path, clock)
    writer(ARRIVED)
    clock.now += SECONDS / 4
    assert writer._flush_if_due() == pytest.approx(SECONDS * 3 / 4)
    assert read_journal(tmp_path).events == []
    clock.now += SECONDS * 3 / 4
    assert writer._flush_if_due() is None
    assert len(read_journal(tmp_path).events) == 1
    writer.close()


def test_the_thread_is_woken_once_a_second_at_most_however_many_events_come(tmp_path: Path) -> None:
    writer = Journal(tmp_path, StandingClock())
    rings: list[int] = []
    writer._reminder.ring = lambda: rings.append(1)
    for number in range(10 * MOST_WAITING):
        writer(ARRIVED)
        if number % 3 == 0:
            writer(RequestFinished(1.0, "a", "stop", None, 0, 0))  # written at once
        writer._flush_if_due()  # as if it looked all the time
    assert len(rings) == 1
    writer.close()


def test_no_thread_is_left_when_a_recording_is_closed(tmp_path: Path) -> None:
    before = recording_threads()
    house = build()
    with house.trace.record(path=tmp_path / "a"), house.trace.record(path=tmp_path / "b"):
        house.add([1, 2, 3], max_tokens=9, ignore_eos=True)
        house.engine.advance()
        assert len(recording_threads() - before) == 2
    assert recording_threads() <= before


def test_no_thread_is_left_when_a_recording_is_forgotten(tmp_path: Path) -> None:
    before = recording_threads()
    writer = Journal(tmp_path)
    writer(ARRIVED)
    forgotten = weakref.ref(writer)
    [thread] = recording_threads() - before
    os.close(writer._file)
    del writer
    # A look keeps it alive, and the next one would come a second later.
    assert comes_true(lambda: forgotten() is None, SECONDS / 2)
    assert comes_true(lambda: not thread.is_alive())


def test_the_disk_may_be_full_when_the_thread_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Journal(tmp_path)
    size = (tmp_path / FILE).stat().st_size
    with full_disk(size + 20):
        writer(ARRIVED)
        assert comes_true(lambda: writer.stopped is not None)
    assert writer.stopped == "the recording ends before the first step was over: File too large"
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / FILE}: {writer.stopped}; the run goes on unrecorded"
    ]
    writer.close()
    assert (tmp_path / FILE).stat().st_size == size  # nothing half written was left
    assert writer.num_events == 0


def test_what_the_thread_cannot_write_ends_the_recording_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "encode", lambda events: 1 / 0)
    writer = Journal(tmp_path)
    writer(ARRIVED)
    assert comes_true(lambda: writer.stopped is not None)
    assert "ZeroDivisionError" in writer.stopped
    assert writer.stopped in caplog.text
    writer.close()


def test_events_of_one_thread_and_reads_of_another_meet_the_third_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SECONDS", 1e-4)  # it writes all the time
    writer = Journal(tmp_path)
    arrivals = [dataclasses.replace(ARRIVED, request_id=str(number)) for number in range(3000)]
    seen: list[list[str]] = []

    def tell() -> None:
        for event in arrivals:
            writer(event)

    teller = threading.Thread(target=tell)
    teller.start()
    while teller.is_alive():
        seen.append([event.request_id for event in writer.snapshot().events])
    writer.close()
    whole = [event.request_id for event in arrivals]
    assert [event.request_id for event in read_journal(tmp_path).events] == whole
    assert read_journal(tmp_path).cut_off is None
    assert all(ids == whole[: len(ids)] for ids in seen)


EXITS = """
import sys
from tests.trace.house import build
house = build()
scope = house.trace.record(path=sys.argv[1])
scope.__enter__()
house.add([1, 2, 3], max_tokens=9, ignore_eos=True)
house.engine.advance()
print("over", flush=True)
"""


def test_an_open_recording_does_not_keep_the_interpreter_alive(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", EXITS, str(tmp_path / "trace")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with child:
        assert child.stdout.readline() == "over\n"
        _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
