"""Recording to disk: what was written loads, wherever it was cut; what is damaged is refused."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.house import House, build
from tests.trace.test_codec import equal
from tests.trace.test_files import same
from tests.trace.test_sums import workloads
from workbench.engine.events import EngineStarted, Event, RequestArrived, RequestFinished
from workbench.trace import Trace, journal
from workbench.trace.frames import frame, read_frame
from workbench.trace.journal import FILE, MAGIC, MOST_WAITING, SECONDS, Journal, read_journal
from workbench.trace.schema import SCHEMA_VERSION


def work(house: House, flush: bool = False) -> None:
    """Shared prefixes, chunks, preemptions, an abort, logprobs, and params that are not the defaults.

    With `flush` what is recorded to disk is written after every step, as a second of work each would be.
    """
    for number in range(8):
        house.add(
            [1] * 8 + [2 + number] * (number + 1),
            max_tokens=6,
            ignore_eos=True,
            logprobs=number % 3 or None,
            logit_bias={3: 0.5},
            stop_token_ids=[7] if number == 3 else None,
        )
    for place in count():
        if place == 3:
            house.engine.abort(house.requests[7:])
        if not house.engine.scheduler.has_work:
            break
        house.engine.advance()
        if flush:
            house.trace.flush()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], Trace]:
    """A folder, the events that went into it, and the same in memory."""
    folder = tmp_path_factory.mktemp("trace")
    house = build(budget=12, blocks=14, depth=1)
    events: list[Event] = []
    with house.trace.record(path=folder) as t, house.trace.record() as memory:
        events += t._kept.snapshot().events
        house.emitter.add(events.append)
        work(house, flush=True)
    assert same(t, memory)
    return folder, events, memory


# --- what comes back ------------------------------------------------------------------------------------


def test_every_event_comes_back_with_its_types(recorded: tuple[Path, list[Event], Trace]) -> None:
    folder, events, _ = recorded
    found = read_journal(folder)
    assert len(found.events) == len(events) > 50
    assert all(map(equal, found.events, events))
    assert found.cut_off is None


def test_a_recorded_folder_loads_as_what_was_in_memory(recorded: tuple[Path, list[Event], Trace]) -> None:
    folder, _, memory = recorded
    decode = lambda ids: " ".join(f"t{token_id}" for token_id in ids)  # noqa: E731
    loaded = Trace.load(folder, decode=decode)
    assert same(loaded, memory)
    assert loaded.cut_off is None
    assert Trace.load(str(folder)).requests.output.isna().all()  # ids only


# --- cut off --------------------------------------------------------------------------------------------


def test_a_recording_cut_off_anywhere_loads_as_far_as_it_goes(
    recorded: tuple[Path, list[Event], Trace], tmp_path: Path
) -> None:
    folder, events, _ = recorded
    data = (folder / FILE).read_bytes()
    header = read_frame(data, len(MAGIC)).end
    known, reads = -1, 0
    for size in sorted({*range(header, len(data), 997), *range(len(data) - 40, len(data))}):
        (tmp_path / FILE).write_bytes(data[:size])
        trace = Trace.load(tmp_path)
        count = trace._kept.num_events
        assert count >= known
        assert all(map(equal, trace._kept.snapshot().events, events))
        assert trace.cut_off is not None
        assert "the recording ends" in repr(trace)
        known, reads = count, reads + 1
    assert known == len(events)
    assert reads > 40


def test_the_cut_is_named(recorded: tuple[Path, list[Event], Trace], tmp_path: Path) -> None:
    folder, _, memory = recorded
    data = (folder / FILE).read_bytes()
    header = read_frame(data, len(MAGIC)).end
    (tmp_path / FILE).write_bytes(data[:header])
    assert "before the first step was over" in Trace.load(tmp_path).cut_off
    (tmp_path / FILE).write_bytes(data[: -len(b'{"end":true}') - 16])
    last = memory.steps.step.max()
    assert Trace.load(tmp_path).cut_off == f"the recording ends after step {last}: it was not closed"
    (tmp_path / FILE).write_bytes(data[:-1])
    assert "half-written bytes aside" in Trace.load(tmp_path).cut_off


@pytest.mark.parametrize("size", [0, 1, len(MAGIC), len(MAGIC) + 9])
def test_a_file_without_its_header_is_refused(
    recorded: tuple[Path, list[Event], Trace], tmp_path: Path, size: int
) -> None:
    (tmp_path / FILE).write_bytes((recorded[0] / FILE).read_bytes()[:size])
    with pytest.raises(ValueError, match=rf"has {size} bytes, not even its header: nothing was recorded"):
        Trace.load(tmp_path)


def test_damage_is_refused_wherever_it_is(recorded: tuple[Path, list[Event], Trace], tmp_path: Path) -> None:
    data = (recorded[0] / FILE).read_bytes()
    for place in range(0, len(data), 499):
        bad = bytearray(data)
        bad[place] ^= 0x40
        (tmp_path / FILE).write_bytes(bad)
        with pytest.raises(ValueError, match="damaged"):
            Trace.load(tmp_path)


def test_what_is_before_the_damage_can_be_kept(
    recorded: tuple[Path, list[Event], Trace], tmp_path: Path
) -> None:
    data = bytearray((recorded[0] / FILE).read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / FILE
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cut it to (\d+) bytes to read the (\d+) events before") as error:
        Trace.load(tmp_path)
    size, count = map(int, re.findall(r"cut it to (\d+) .* the (\d+) events", str(error.value))[0])
    path.write_bytes(data[:size])
    assert Trace.load(tmp_path)._kept.num_events == count > 20


def test_a_newer_recording_is_refused(recorded: tuple[Path, list[Event], Trace], tmp_path: Path) -> None:
    newer = f'{{"schema_version":{SCHEMA_VERSION + 1},"workbench_version":"9"}}'.encode()
    (tmp_path / FILE).write_bytes(MAGIC + frame(newer))
    with pytest.raises(ValueError, match=f"schema {SCHEMA_VERSION + 1}.*reads {SCHEMA_VERSION}: upgrade"):
        Trace.load(tmp_path)
    data = (recorded[0] / FILE).read_bytes()
    known = data[: read_frame(data, len(MAGIC)).end]
    (tmp_path / FILE).write_bytes(known + frame(b'[1,["record","AdapterDreamed",{"at":["big",[1]]}]]'))
    with pytest.raises(ValueError, match="AdapterDreamed, which this version does not know"):
        Trace.load(tmp_path)


# --- killed ---------------------------------------------------------------------------------------------

ENDLESS = """
import sys, time
from tests.trace.house import build
house = build(budget=24, blocks=200)
number = 0
with house.trace.record(path=sys.argv[1]):
    while True:  # somebody is always open
        while len(house.engine.scheduler.waiting) < 4:
            house.add([1] * (number % 4) + [2], max_tokens=20, ignore_eos=True)
            number += 1
        commit = house.engine.advance()
        print(time.monotonic(), commit.flight.plan.index, flush=True)
"""


def test_a_killed_process_loses_at_most_the_last_second(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "trace")],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with child:
        began = float(child.stdout.readline().split()[0])
        told = []
        while not told or told[-1][0] < began + 1.5 * SECONDS:
            at, step = child.stdout.readline().split()
            told.append((float(at), int(step)))
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    trace = Trace.load(tmp_path / "trace")
    assert "it was not closed" in trace.cut_off
    committed = trace.steps[trace.steps.status == "committed"]
    assert committed.step.tolist() == list(range(len(committed)))
    assert committed.step.max() >= max(step for at, step in told if at <= told[-1][0] - SECONDS) > 10
    assert trace.steps.scheduled.sum() == trace.step_requests.scheduled.sum()


@settings(max_examples=20)
@given(
    work=workloads(), depth=st.integers(0, 2), blocks=st.integers(14, 30), flushes=st.sets(st.integers(0, 40))
)
def test_wherever_it_is_written_the_tables_are_the_same(
    work: list[tuple[list[int], int]], depth: int, blocks: int, flushes: set[int]
) -> None:
    house = build(budget=12, blocks=blocks, depth=depth)
    with TemporaryDirectory() as folder:
        with house.trace.record(folder) as t, house.trace.record() as memory:
            for prompt, most in work:
                house.add(prompt, most)
            for place in count():
                if place in flushes:
                    t.flush()
                if not house.engine.scheduler.has_work:
                    break
                house.engine.advance()
        loaded = Trace.load(folder, decode=house.trace._decode)
    assert same(loaded, memory)
    assert same(loaded, house.trace)  # the ring, which has let nothing go


def test_when_nothing_is_open_nothing_waits_to_be_written(tmp_path: Path) -> None:
    house = build(depth=1)
    with house.trace.record(path=tmp_path) as t:
        for number in range(3):
            house.add([number] * 9, max_tokens=9, ignore_eos=True)
            house.run()
            there = read_journal(tmp_path)  # the file as a kill would leave it
            assert len(there.events) == t._kept.num_events
            assert (
                there.cut_off
                == f"the recording ends after step {house.trace.steps.step.max()}: it was not closed"
            )


class StandingClock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def test_what_waits_is_written_after_a_second_and_when_it_is_much(tmp_path: Path) -> None:
    def heard() -> int:
        return len(read_journal(tmp_path).events)

    clock = StandingClock()
    writer = Journal(tmp_path, clock)
    arrived = RequestArrived(0.0, "a", np.arange(3, dtype=np.int32), 4, 0, b"")
    writer(arrived)
    clock.now += SECONDS - 0.01
    writer(arrived)
    assert heard() == 0
    clock.now += 0.02
    writer(arrived)
    assert heard() == 3
    for _ in range(MOST_WAITING - 1):
        writer(arrived)
    assert heard() == 3
    writer(arrived)
    assert heard() == 3 + MOST_WAITING
    writer(arrived)
    writer.flush()
    assert heard() == 4 + MOST_WAITING
    writer(arrived)
    writer(RequestFinished(1.0, "a", "stop", None, 0, 0))  # nobody is open any more
    assert heard() == 6 + MOST_WAITING
    writer(EngineStarted(1.0, {}))
    assert heard() == 7 + MOST_WAITING == writer.num_events


# --- places that cannot be written ----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file", "file/trace", "/proc/trace"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    house = build()
    with (
        pytest.raises(
            OSError, match=rf"{place} cannot be written \(.*\): name a folder that can, or record\(\)"
        ),
        house.trace.record(path=tmp_path / place),
    ):
        pytest.fail("the block ran")
    assert house.trace._scopes == ()
    assert (tmp_path / "file").read_text() == "mine"


def test_a_recording_is_never_written_over(recorded: tuple[Path, list[Event], Trace]) -> None:
    before = (recorded[0] / FILE).read_bytes()
    with pytest.raises(FileExistsError, match="holds a recording already: name another folder"):
        build().trace.record(path=recorded[0]).__enter__()
    assert (recorded[0] / FILE).read_bytes() == before


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_run_goes_on_when_the_disk_is_full_and_the_trace_says_where_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = build(budget=12, blocks=14)
    work(plain)
    house = build(budget=12, blocks=14)
    with house.trace.record(path=tmp_path) as t:
        with full_disk(12_345):
            work(house, flush=True)
        last = t.steps[t.steps.status == "committed"].step.max()
        assert t.cut_off == f"the recording ends after step {last}: File too large"
    assert [r.token_ids.tolist() for r in house.requests] == [r.token_ids.tolist() for r in plain.requests]
    assert [r.getMessage() for r in caplog.records if "goes on unrecorded" in r.getMessage()] == [
        f"{tmp_path / FILE}: {t.cut_off}; the run goes on unrecorded"
    ]
    assert len(house.trace.steps) > len(t.steps) > 0
    assert t.cut_off in repr(t)
    loaded = Trace.load(tmp_path)
    assert loaded.steps.equals(t.steps)
    assert "aside" not in loaded.cut_off  # nothing half written was left
    assert not Trace.diff(loaded, t)


def test_a_disk_that_is_full_from_the_start_is_refused(tmp_path: Path) -> None:
    with (
        full_disk(20),
        pytest.raises(OSError, match="cannot be written"),
        build().trace.record(path=tmp_path),
    ):
        pytest.fail("the block ran")
    assert list(tmp_path.iterdir()) == []


def test_a_scope_that_fails_leaves_the_engine_s_own_trace_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build()
    with house.trace.record(path=tmp_path) as t:
        house.add([1, 2, 3], max_tokens=3)
        t.flush()
        monkeypatch.setattr(journal, "encode", lambda events: 1 / 0)
        house.run()
        monkeypatch.undo()
    assert len(house.trace.steps) >= 1
    assert "ZeroDivisionError" in t.cut_off
    assert len(t.requests) == 1
    assert len(t.steps) == 0


def test_recording_to_disk_changes_no_decision(tmp_path: Path) -> None:
    plain, recorded = build(budget=9, blocks=14, depth=1), build(budget=9, blocks=14, depth=1)
    work(plain)
    with recorded.trace.record(path=tmp_path):
        work(recorded)
    assert [r.token_ids.tolist() for r in plain.requests] == [r.token_ids.tolist() for r in recorded.requests]
    assert not Trace.diff(plain.trace, recorded.trace)


def test_the_file_is_closed_when_the_block_ends(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    house = build()
    with pytest.raises(KeyError), house.trace.record(path=tmp_path):
        raise KeyError
    house.add([1])
    house.run()
    assert len(os.listdir("/proc/self/fd")) == before
    assert Trace.load(tmp_path).cut_off is None
    assert len(Trace.load(tmp_path).steps) == 0
