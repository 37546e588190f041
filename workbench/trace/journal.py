"""A recording on disk: a folder with one file, to which events are appended as they happen, many at once.

Events wait for one another, because many at once cost a fraction of as many alone. They are handed to the
operating system after a second, when many wait, and as soon as no request is open: a process that is
killed loses at most the last second of its work. While events come, whoever tells of one hands them over; a
thread does where none follows, as when requests are stepped by hand and left open. Knows events only as
frames; derives nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import workbench
from workbench.engine.clock import Clock
from workbench.engine.events import Event, RequestArrived, RequestFinished, StepCommitted, StepFailed
from workbench.engine.result import StepResult
from workbench.trace.codec import Unknown, decode, encode
from workbench.trace.frames import Damaged, Frame, frame, read_frame
from workbench.trace.recorder import Recording
from workbench.trace.reminder import Reminder
from workbench.trace.schema import SCHEMA_VERSION

logger = logging.getLogger(__name__)

FILE = "events.bin"
MAGIC = b"workbench trace\n"
MOST_WAITING = 256  # events: of a thousand requests, 3 ms to write
SECONDS = 1.0
_END = b'{"end":true}'


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a file holds."""

    events: list[Event]
    cut_off: str | None  # where it ends, if that is not where the recording was closed


class Journal:
    """An observer that writes what it hears into a folder; `snapshot` reads it back.

    When the disk is full or the file cannot be written any more, it says so in the log, keeps the whole
    events before and hears no more; the run goes on.

    Raises:
        FileExistsError: the folder holds a recording already.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        folder = folder.absolute()  # the working directory may change before it is read
        self.path = folder / FILE
        self.num_events = 0  # heard, and not lost since
        self.stopped: str | None = None  # why it hears no more, before it was closed
        self._last_step: int | None = None  # in the file
        self._lock = threading.Lock()  # one thread steps, another may close
        self._clock = clock
        self._waiting: list[Event] = []
        self._flushed = clock()  # when nothing waited any more
        self._reminded = False  # the thread will look whether what waits is due
        self._open: set[str] = set()  # requests
        self._identity: tuple[int, ...] | None = None  # of the file, once it is closed
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            if not self.path.exists():  # the folder is a file
                raise _unwritable(folder, error) from None
            raise FileExistsError(
                f"{folder} holds a recording already: name another folder, or delete {self.path}"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from None
        self._size = 0
        try:
            self._write(MAGIC + frame(_header()))
        except OSError as error:
            self._close()
            self.path.unlink(missing_ok=True)
            raise _unwritable(folder, error) from None
        self._reminder = Reminder(self, Journal._flush_if_due)

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._file is None:
                return
            self._waiting.append(event)
            self.num_events += 1
            if type(event) is RequestArrived:
                self._open.add(event.request_id)
            elif type(event) is RequestFinished:
                self._open.discard(event.request_id)
            if (
                not self._open
                or len(self._waiting) >= MOST_WAITING
                or self._clock() - self._flushed >= SECONDS
            ):
                self._flush()
            elif not self._reminded:  # at most one ring a second, however many events come
                self._reminded = True
                self._reminder.ring()

    def flush(self) -> None:
        """Nothing waits any more."""
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Nothing follows; the file says so."""
        try:
            with self._lock:
                self._flush()
                self._write_end()
        finally:
            self._reminder.end()

    def snapshot(self) -> Recording:
        """Everything heard, oldest first.

        Raises:
            FileNotFoundError: the recording was closed, and its file deleted or replaced.
        """
        with self._lock:
            self._flush()
            file = None if self._file is None else os.dup(self._file)
            size = self._size
        data = self._read_closed() if file is None else _read_open(file, size)
        return Recording(read_data(self.path, data).events, 0)

    def _read_closed(self) -> bytes:
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            if _identity(os.fstat(file.fileno())) == self._identity:
                return file.read()
        raise FileNotFoundError(
            f"{self.path} was deleted, moved or replaced since it was recorded: Trace.load reads what is"
            " there now, or where it went"
        )

    def _flush_if_due(self) -> float | None:
        """Writes what waits, once nothing was written for a second; how long until then, None: it is done."""
        with self._lock:
            left = self._flushed + SECONDS - self._clock()
            if left > 0:
                return left
            self._reminded = False
            try:
                self._flush()
            except Exception as error:  # noqa: BLE001 - there is nobody to tell but the log
                self._stop(repr(error))
            return None

    def _flush(self) -> None:
        self._flushed = self._clock()
        batch, self._waiting = self._waiting, []
        if self._file is None or not batch:
            return
        try:
            self._write(encode(batch))
        except OSError as error:
            self.num_events -= len(batch)
            self._give_up(error)
            return
        except Exception:
            self.num_events -= len(batch)
            self._close()
            raise
        steps = [step for event in batch if (step := _step_over(event)) is not None]
        self._last_step = steps[-1] if steps else self._last_step

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the recording is closed"
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        self._size += len(data)

    def _write_end(self) -> None:
        if self._file is None:
            return
        try:
            self._write(frame(_END))
        except OSError as error:
            self._give_up(error)
            return
        self._close()

    def _stop(self, why: str) -> None:
        where = (
            "before the first step was over" if self._last_step is None else f"after step {self._last_step}"
        )
        self.stopped = f"the recording ends {where}: {why}"
        logger.warning("%s: %s; the run goes on unrecorded", self.path, self.stopped)

    def _give_up(self, error: OSError) -> None:
        self._stop(error.strerror or str(error))
        assert self._file is not None, "an open file failed"
        try:
            os.ftruncate(self._file, self._size)  # what was half written
        except OSError as failed:
            logger.warning("%s keeps a half-written end: %s", self.path, failed)
        self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        ours = os.fstat(file)
        try:
            os.close(file)
            there = self.path.stat()  # afterwards, when a network file system has settled its times
            if os.path.samestat(ours, there):
                self._identity = _identity(there)
        except FileNotFoundError:
            self.stopped = self.stopped or "the recording was deleted or moved while it was made"
            logger.warning("%s: %s", self.path, self.stopped)
        except OSError as error:  # what a network file system tells at the end
            self.stopped = self.stopped or f"the end of the recording may be missing: {error.strerror}"
            logger.warning("%s: %s", self.path, self.stopped)


def _read_open(file: int, size: int) -> bytes:
    """By the open file, wherever its name has gone; closes it."""
    parts: list[bytes] = []
    at = 0
    try:
        while part := os.pread(file, size - at, at):
            parts.append(part)
            at += len(part)
    finally:
        os.close(file)
    return b"".join(parts)


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    """A number of a deleted file is given to another one soon; its time of writing is not."""
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _step_over(event: Event) -> int | None:
    """The step that it tells the end of."""
    if type(event) is StepCommitted:
        return event.result.index
    return event.index if type(event) is StepFailed else None


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{folder} cannot be written ({error.strerror}): name a folder that can, or record() without a path",
    )


def _header() -> bytes:
    said = {"schema_version": SCHEMA_VERSION, "workbench_version": workbench.__version__}
    return json.dumps(said).encode()


# --- reading --------------------------------------------------------------------------------------------


def read_journal(folder: Path) -> Recorded:
    """What a recorded folder holds, as far as it was written.

    Raises:
        ValueError: it is of a newer version, or damaged before its end.
    """
    path = folder / FILE
    return read_data(path, path.read_bytes())


def read_data(path: Path, data: bytes) -> Recorded:
    """As `read_journal`, of what stands in the file."""
    begin = _read_header(path, data)
    events: list[Event] = []
    while begin < len(data):
        found = _frame(path, data, begin, len(events))
        if found is None:
            break
        if found.head == _END:
            return Recorded(events, None)
        try:
            events += _events(found)
        except Unknown as unknown:
            raise ValueError(
                f"{path} says {unknown}, which this version does not know: read it with the one that wrote it"
            ) from None
        except Damaged as damage:
            raise _damaged(path, damage, begin, len(events)) from None
        begin = found.end
    return Recorded(events, _cut_off(events, begin, len(data)))


def _events(found: Frame) -> list[Event]:
    events = decode(found)
    for event in events:
        if not isinstance(event, Event):
            raise Damaged(f"{type(event).__name__} is no event")
        if type(event) is StepCommitted and type(event.result) is not StepResult:
            raise Damaged("a step came to no result")
    return events


def _frame(path: Path, data: bytes, begin: int, whole: int) -> Frame | None:
    try:
        return read_frame(data, begin)
    except Damaged as damage:
        raise _damaged(path, damage, begin, whole) from None


def _damaged(path: Path, damage: Damaged, begin: int, whole: int) -> ValueError:
    return ValueError(
        f"{path} is damaged ({damage}): cut it to {begin} bytes to read the {whole} events before"
    )


def _cut_off(events: list[Event], begin: int, size: int) -> str:
    steps = [event for event in events if type(event) is StepCommitted]
    where = f"after step {steps[-1].result.index}" if steps else "before the first step was over"
    half = f", {size - begin} half-written bytes aside" if size > begin else ""
    return f"the recording ends {where}: it was not closed{half}"


def _read_header(path: Path, data: bytes) -> int:
    """Checks what the file says of itself; where the events begin."""
    if not data.startswith(MAGIC):
        if MAGIC.startswith(data):
            raise ValueError(f"{path} has {len(data)} bytes, not even its header: nothing was recorded")
        raise ValueError(f"{path} begins with {data[:16]!r}, not as a recording does: it is damaged")
    found = _frame(path, data, len(MAGIC), 0)
    if found is None:
        raise ValueError(f"{path} has {len(data)} bytes, not even its header: nothing was recorded")
    try:
        version = json.loads(found.head)["schema_version"]
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(
            f"{path} begins with {found.head[:40]!r}, which is no header: it is damaged"
        ) from None
    if version != SCHEMA_VERSION:
        raise ValueError(wrong_schema(path, version))
    return found.end


def wrong_schema(path: Path, version: object) -> str:
    """What to do with a trace of another schema."""
    newer = isinstance(version, int) and version > SCHEMA_VERSION
    remedy = "upgrade workbench" if newer else "read it with the version that wrote it, or record it again"
    return f"{path} has schema {version}, this version reads {SCHEMA_VERSION}: {remedy}"
