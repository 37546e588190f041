"""Recording to disk: what was written loads, wherever it was cut; what is damaged is refused."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.trace.house import House, build
from tests.trace.test_files import same
from workbench.engine.events import Event
from workbench.engine.result import LogprobColumns
from workbench.params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from workbench.trace import Trace
from workbench.trace.codec import Decoder, Encoder, read_frame
from workbench.trace.journal import FILE, MAGIC, read_journal


def work(house: House) -> None:
    """Shared prefixes, chunks, preemptions, an abort, logprobs, and params that are not the defaults."""
    for number in range(8):
        house.add(
            [1] * 8 + [2 + number] * (number + 1),
            max_tokens=6,
            ignore_eos=True,
            logprobs=number % 3 or None,
            logit_bias={3: 0.5},
            stop_token_ids=[7] if number == 3 else None,
        )
    for _ in range(3):
        house.engine.advance()
    house.engine.abort(house.requests[7:])
    house.run()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event], Trace]:
    """A folder, the events that went into it, and the same in memory."""
    folder = tmp_path_factory.mktemp("trace")
    house = build(budget=12, blocks=14, depth=1)
    events: list[Event] = []
    with house.trace.record(path=folder) as t, house.trace.record() as memory:
        events += t._kept.snapshot().events
        house.emitter.add(events.append)
        work(house)
    assert same(t, memory)
    return folder, events, memory


def equal(a: object, b: object) -> bool:
    """Whether two values are the same, with their types, and arrays with their dtypes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if dataclasses.is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


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


@pytest.mark.parametrize(
    "value",
    [
        SamplingParams(),
        SamplingParams(
            n=3, seed=5, stop=["a"], stop_token_ids=[1], logit_bias={2: -1.0}, allowed_token_ids=[1, 2],
            output_kind=RequestOutputKind.DELTA,
            structured_outputs=StructuredOutputsParams(json={"type": "object", "@": [1, {"a": None}]}),
        ),
        SamplingParams(extra_args={"a": (1, 2.5, None), "b": {"c": b"\x00\xff"}}),
        LogprobColumns(
            np.array([-0.5, -np.inf], np.float32), np.array([1, 2], np.int32),
            np.zeros((2, 0), np.int32), np.zeros((2, 3), np.float32), np.ones(2, np.float32),
        ),
        (("a", "b", "c", "d"), ("a", "b", "c", "d"), ("a", "b"), (), ("a", 1, 2.0, None, "b")),
        {"nan": [True, 1, "1", 1e300]},
    ],
)  # fmt: skip
def test_values_come_back_with_their_types(value: object) -> None:
    frame = read_frame(Encoder().encode(value), 0)  # type: ignore[arg-type]
    assert frame is not None
    assert equal(Decoder().decode(frame), value)


def test_an_object_of_the_users_own_does_not_stop_the_recording() -> None:
    frame = read_frame(Encoder().encode(SamplingParams(extra_args={"mine": object()})), 0)  # type: ignore[arg-type]
    assert frame is not None
    assert Decoder().decode(frame) == SamplingParams(extra_args={"mine": None})


def test_nothing_but_the_package_s_own_types_is_made_from_a_file() -> None:
    from workbench.trace import codec

    for name in ("os.system", "Popen", "Path", "Emitter", "type"):
        head = f'{{"@":"{name}","f":[],"v":[]}}'.encode()
        frame = read_frame(codec.frame(head), 0)
        assert frame is not None
        with pytest.raises(codec.Unknown, match=name):
            Decoder().decode(frame)


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
    assert "bytes of a half-written event aside" in Trace.load(tmp_path).cut_off


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
    from workbench.trace.codec import frame
    from workbench.trace.schema import SCHEMA_VERSION

    newer = f'{{"schema_version":{SCHEMA_VERSION + 1},"workbench_version":"9"}}'.encode()
    (tmp_path / FILE).write_bytes(MAGIC + frame(newer))
    with pytest.raises(ValueError, match=f"schema {SCHEMA_VERSION + 1}.*reads {SCHEMA_VERSION}: upgrade"):
        Trace.load(tmp_path)
    data = (recorded[0] / FILE).read_bytes()
    known = data[: read_frame(data, len(MAGIC)).end]
    (tmp_path / FILE).write_bytes(known + frame(b'{"@":"AdapterDreamed","f":["at"],"v":[0.5]}'))
    with pytest.raises(ValueError, match="AdapterDreamed, which this version does not know"):
        Trace.load(tmp_path)


# --- killed ---------------------------------------------------------------------------------------------

ENDLESS = """
import sys
from tests.trace.house import build
house = build(budget=24, blocks=200)
with house.trace.record(path=sys.argv[1]):
    while True:
        for number in range(4):
            house.add([1] * number + [2], max_tokens=20, ignore_eos=True)
        while house.engine.scheduler.has_work:
            commit = house.engine.advance()
            print(commit.flight.plan.index, flush=True)
"""


def test_what_a_killed_process_had_recorded_loads(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path / "trace")],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with child:
        for _ in range(50):
            child.stdout.readline()
        time.sleep(0.1)  # into the middle of something
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split() if line]
    assert child.returncode == -signal.SIGKILL
    trace = Trace.load(tmp_path / "trace")
    assert "it was not closed" in trace.cut_off
    # Everything it told us it had done is there; of what it did not, at most one step.
    committed = trace.steps[trace.steps.status == "committed"]
    assert committed.step.tolist() == list(range(len(committed)))
    assert max(told) <= committed.step.max() <= max(told) + 1
    assert trace.steps.scheduled.sum() == trace.step_requests.scheduled.sum()


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
    assert house.trace._scopes == []
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
            work(house)
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
    assert "aside" not in loaded.cut_off  # no half event was left
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
        monkeypatch.setattr(Encoder, "encode", lambda self, event: 1 / 0)
        house.run()
        monkeypatch.undo()
    assert len(house.trace.steps) >= 1
    assert "ZeroDivisionError" in t.cut_off
    assert len(t.requests) == 1


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
