"""The trace of an engine: an observer to register, tables to look at, files and a report to keep.

Knows nothing of the engine but its events.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

import workbench
from workbench.engine.events import Event, Observer
from workbench.trace import files, perfetto, prometheus
from workbench.trace.derive import derive
from workbench.trace.diff import Difference, compare
from workbench.trace.journal import FILE, Journal, read_journal
from workbench.trace.picks import Decode
from workbench.trace.recorder import Recorder, Recording
from workbench.trace.report import page
from workbench.trace.schema import Tables

if TYPE_CHECKING:
    from workbench.trace.tables import Frame

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 1024  # of a thousand running requests each, these hold about 50 MB


class _Kept(Protocol):
    """Where a trace has its events: in memory, or on disk."""

    num_events: int

    def __call__(self, event: Event) -> None: ...

    def snapshot(self) -> Recording: ...


class Trace:
    """What happened, as tables.

    `runs`, `requests`, `steps`, `step_requests`, `tokens`, `blocks` and `events` are pandas DataFrames, made
    when they are looked at; `workbench.trace.schema` says what every column means.

    Args:
        max_steps: steps to keep, older ones are let go; None keeps everything.
        decode: text of token ids, for the columns that hold text.
        want_logprobs: how to ask the engine for top logprobs of every token; it gives them inside a block.
        turn: a turn of the engine, in which no event comes but this thread's own.
    """

    def __init__(
        self,
        max_steps: int | None = DEFAULT_STEPS,
        decode: Decode | None = None,
        want_logprobs: Callable[[int], AbstractContextManager[None]] | None = None,
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._recorder = Recorder(max_steps)
        self._kept: _Kept = self._recorder
        self._decode = decode
        self._want_logprobs = want_logprobs
        self._turn = turn
        self._known = self._recorder  # who knows which requests are open: the outermost trace
        self._lock = threading.RLock()  # scopes come and go in any thread, and in finalisers
        self._scopes: tuple[Trace, ...] = ()  # replaced, never changed in place
        self._followers: tuple[Observer, ...] = ()  # likewise
        self._cut_off: str | None = None
        self._folder: Path | None = None  # it was loaded from
        self._from_tables = False  # and there are no events
        self._tables: Tables | None = None
        self._tables_at = -1  # events seen when `_tables` was made

    @classmethod
    def load(cls, folder: str | Path, decode: Decode | None = None) -> Trace:
        """The trace in a folder: of `record(path)`, even of a process that was killed, or of `to_csv`,
        `to_jsonl` or `to_parquet`. Where there are both, what was recorded is read.

        Args:
            folder: the one that was named then.
            decode: text of token ids; a recording holds ids only, and without it has no texts.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another schema than this version's.
            MissingExtra: it is in Parquet, and pyarrow is not installed.
        """
        trace, place = cls(None, decode), files.named(folder)
        trace._folder = place
        if not (place / FILE).is_file():
            trace._tables, trace._tables_at, trace._from_tables = files.read(place), 0, True
            return trace
        recorded = read_journal(place)
        for event in recorded.events:
            trace._recorder(event)
        trace._cut_off = recorded.cut_off
        return trace

    @property
    def cut_off(self) -> str | None:
        """Where the recording ends and why, if that is before it was closed; None: it is whole."""
        stopped = self._kept.stopped if isinstance(self._kept, Journal) else None
        return stopped or self._cut_off

    def observer(self, event: Event) -> None:
        """Takes the engine's events, in order."""
        self._kept(event)
        for scope in self._scopes:
            try:
                scope.observer(event)
            except Exception as error:  # noqa: BLE001 - the run goes on, and so does this trace
                self._forget(scope)
                scope._cut_off = f"the recording ends at a {type(event).__name__}: {error!r}"
                logger.warning("%s; the run goes on unrecorded", scope._cut_off)
        for follower in self._followers:
            try:
                follower(event)
            except Exception as error:  # noqa: BLE001 - likewise
                self.unfollow(follower)
                logger.warning("follower %r raised %r and is set aside", follower, error)

    def follow(self, follower: Observer) -> Recording:
        """`follower` is called with every event from now on; what was kept before is returned.

        Between the two nothing is missing, and nothing is told twice.

        Raises:
            ValueError: the trace was loaded from tables, which hold no events.
        """
        with self._turn(), self._lock:
            kept = self.recording()
            self._followers = (*self._followers, follower)
        return kept

    def unfollow(self, follower: Observer) -> None:
        """It hears no more; one that does not follow is left alone."""
        with self._lock:
            self._followers = tuple(other for other in self._followers if other is not follower)

    @property
    def followers(self) -> tuple[Observer, ...]:
        """Who is called with every event."""
        return self._followers

    @property
    def max_steps(self) -> int | None:
        """Steps it keeps, older ones are let go; None: everything."""
        return self._recorder.max_steps if self._kept is self._recorder else None

    @property
    def decode(self) -> Decode | None:
        """The text of token ids, where there is a tokenizer."""
        return self._decode

    @contextmanager
    def record(self, path: str | Path | None = None, logprobs: int = 0) -> Iterator[Trace]:
        """Everything that happens inside the block, kept whole: `with llm.trace.record() as t: ...`.

        Args:
            path: a folder to write to as it happens. It is made; a process that is killed loses at most the
                last second of its work, and what it had written is read with `Trace.load`. None keeps
                everything in memory.
            logprobs: of every token, those of the k likeliest are recorded, whatever its request asked for;
                0: where the request asked. No token changes by it.

        Raises:
            ValueError: the engine does not give so many logprobs, or the path names no folder.
            FileExistsError: the folder holds a recording.
            TypeError: the path is none; a number may have been meant for logprobs.
            OSError: the path cannot be written. If that happens later, a disk being full say, the run goes
                on, and `cut_off` says where the recording ends.
        """
        if isinstance(path, int):
            raise TypeError(
                f"the path is {path!r}: name a folder, or ask for logprobs with record(logprobs={path})"
            )
        wanting = self._wanting(logprobs)
        scope = Trace(None, self._decode, turn=self._turn)
        scope._known = self._known
        journal = None if path is None else Journal(files.named(path))
        if journal is not None:
            scope._kept = journal
        try:
            with self._turn():  # or a request ends unheard between the two
                for event in self._known.open_requests():
                    scope.observer(event)
                with self._lock:
                    self._scopes = (*self._scopes, scope)
            with wanting:
                yield scope
        finally:
            self._forget(scope)
            if journal is not None:
                journal.close()

    def flush(self) -> None:
        """Write now what the recordings to disk hold back, which is at most the last second's work."""
        for trace in (self, *self._scopes):
            if isinstance(trace._kept, Journal):
                trace._kept.flush()

    def _forget(self, scope: Trace) -> None:
        with self._lock:
            self._scopes = tuple(other for other in self._scopes if other is not scope)

    def _wanting(self, logprobs: int) -> AbstractContextManager[None]:
        if not logprobs:
            return nullcontext()
        if logprobs == -1:
            raise ValueError(
                "a trace keeps the likeliest tokens, not the vocabulary: record(logprobs=20), say, and ask"
                " for the vocabulary with SamplingParams(logprobs=-1)"
            )
        if self._want_logprobs is None:
            raise ValueError(
                f"record(logprobs={logprobs}) is for an engine to answer, and this trace has none: call it on"
                " llm.trace"
            )
        return self._want_logprobs(logprobs)

    @property
    def has_events(self) -> bool:
        """Whether it holds the events themselves; one that was read from tables does not."""
        return not self._from_tables

    def recording(self) -> Recording:
        """The events themselves, oldest first, as `workbench.sim.replay` needs them.

        Raises:
            ValueError: the trace was loaded from tables, which do not hold them.
        """
        if self._from_tables:
            raise ValueError("the trace was read from tables and holds no events: record(path) keeps them")
        return self._kept.snapshot()

    @property
    def columns(self) -> Tables:
        """The tables as numpy columns, for those who need no pandas."""
        seen = self._kept.num_events
        if self._tables is None or self._tables_at != seen:
            self._tables = self._derive()
            self._tables_at = seen
        return self._tables

    def _derive(self) -> Tables:
        recording, version = self._kept.snapshot(), workbench.__version__
        try:
            return derive(recording, version, self._decode)
        except (AttributeError, TypeError, LookupError, ValueError) as error:
            if self._folder is None:
                raise
            if self._decode is not None:
                derive(recording, version)  # if that goes well, it was the decoding
                raise
            raise ValueError(
                f"{self._folder / FILE} is damaged, its events do not go together ({error!r}): record again"
            ) from error

    @property
    def runs(self) -> Frame:
        """One line: the settings and the totals."""
        return self._frame("runs")

    @property
    def requests(self) -> Frame:
        """A line a request, in order of arrival."""
        return self._frame("requests")

    @property
    def steps(self) -> Frame:
        """A line a step."""
        return self._frame("steps")

    @property
    def step_requests(self) -> Frame:
        """A line for each request in each step: who got how many tokens."""
        return self._frame("step_requests")

    @property
    def tokens(self) -> Frame:
        """A line a generated token."""
        return self._frame("tokens")

    @property
    def blocks(self) -> Frame:
        """A line for each thing that happened to a KV block."""
        return self._frame("blocks")

    @property
    def events(self) -> Frame:
        """A line a decision, in order."""
        return self._frame("events")

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write every table as CSV into a folder, which is made; returns the files."""
        return files.write(self.columns, files.named(folder), "csv")

    def to_jsonl(self, folder: str | Path) -> list[Path]:
        """Write every table as JSON Lines, an object a row, into a folder; returns the files."""
        return files.write(self.columns, files.named(folder), "jsonl")

    def to_parquet(self, folder: str | Path) -> list[Path]:
        """Write every table as Parquet into a folder, which is made; returns the files.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        return files.write(self.columns, files.named(folder), "parquet")

    def to_perfetto(self, path: str | Path) -> Path:
        """Write one Chrome trace (JSON), to be opened at ui.perfetto.dev; returns its path.

        Steps and what each request did are slices, KV blocks and queue lengths are counters.
        """
        return _write_text(Path(path), perfetto.chrome_trace(self.columns))

    def to_prometheus(self) -> str:
        """Counters, gauges and histograms of this trace, in Prometheus' text format and by vLLM's names."""
        return prometheus.exposition(self.columns)

    def diff(self, other: Trace) -> Difference:
        """The first decision in which two runs part, whatever their times: `Trace.diff(a, b)`.

        The steps of both are counted from their first, batch rows and blocks as they appear. Their requests
        are matched by id, or, where the ids differ, in the order in which they came. The outcome is false
        where there is no difference.
        """
        return compare(self.columns, other.columns)

    def to_report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page; returns its path."""
        return _write_text(Path(path), page(self.columns))

    def _frame(self, name: str) -> Frame:
        from workbench.trace.tables import frame

        return frame(name, getattr(self.columns, name))

    def __reduce__(self) -> NoReturn:
        """Pickled or copied, it would be a trace of no engine."""
        raise TypeError(
            "a Trace cannot be pickled or copied: its tables can (trace.steps ...), and to_csv or"
            " record(path) make a folder that Trace.load reads"
        )

    def __repr__(self) -> str:
        try:
            run = {name: column[0] for name, column in self.columns.runs.items()}
        except OSError as gone:
            return f"Trace({gone})"
        cut_off = f"; {self.cut_off}" if self.cut_off else ""
        return (
            f"Trace({run['steps']} steps, {run['requests']} requests, "
            f"{run['scheduled_tokens']} tokens computed, {run['output_tokens']} generated{cut_off})"
        )


def _write_text(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(
            error.errno, f"{path} cannot be written ({error.strerror or error}): name another file"
        ) from None
    return path
