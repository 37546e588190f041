"""The trace of an engine: an observer to register, tables to look at, files and a report to keep.

Knows nothing of the engine but its events.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import workbench
from workbench.engine.events import Event
from workbench.trace import files
from workbench.trace.derive import Decode, derive
from workbench.trace.recorder import Recorder
from workbench.trace.report import page
from workbench.trace.schema import Tables

if TYPE_CHECKING:
    from workbench.trace.tables import Frame

DEFAULT_STEPS = 1024  # of a thousand running requests each, these hold about 50 MB


class Trace:
    """What happened, as tables.

    `runs`, `requests`, `steps`, `step_requests`, `tokens` and `events` are pandas DataFrames, made when they
    are looked at; `workbench.trace.schema` says what every column means.

    Args:
        max_steps: steps to keep, older ones are let go; None keeps everything.
        decode: text of token ids, for the columns that hold text.
    """

    def __init__(self, max_steps: int | None = DEFAULT_STEPS, decode: Decode | None = None) -> None:
        self._recorder = Recorder(max_steps)
        self._decode = decode
        self._scopes: list[Trace] = []
        self._tables: Tables | None = None
        self._tables_at = -1  # events seen when `_tables` was made

    @classmethod
    def load(cls, folder: str | Path) -> Trace:
        """The trace that `to_csv` wrote into a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or newer than this version.
        """
        trace = cls()
        trace._tables, trace._tables_at = files.read_csv(Path(folder)), 0
        return trace

    def observer(self, event: Event) -> None:
        """Takes the engine's events, in order."""
        self._recorder(event)
        for scope in self._scopes:
            scope.observer(event)

    @contextmanager
    def record(self, path: str | Path | None = None, logprobs: int = 0) -> Iterator[Trace]:
        """Everything that happens inside the block, kept whole: `with llm.trace.record() as t: ...`."""
        if path is not None:
            raise ValueError(
                f"recording to a path ({path}) is not available yet: call to_csv(path) after the block"
            )
        if logprobs:
            raise ValueError(
                f"record(logprobs={logprobs}) is not available yet: use SamplingParams(logprobs=...)"
            )
        scope = Trace(None, self._decode)
        for event in self._recorder.open_requests():
            scope.observer(event)
        self._scopes.append(scope)
        try:
            yield scope
        finally:
            self._scopes.remove(scope)

    @property
    def columns(self) -> Tables:
        """The tables as numpy columns, for those who need no pandas."""
        seen = self._recorder.num_events
        if self._tables is None or self._tables_at != seen:
            self._tables = derive(self._recorder.snapshot(), workbench.__version__, self._decode)
            self._tables_at = seen
        return self._tables

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
    def events(self) -> Frame:
        """A line a decision, in order."""
        return self._frame("events")

    def to_csv(self, folder: str | Path) -> list[Path]:
        """Write every table as CSV into a folder, which is made; returns the files."""
        return files.write_csv(self.columns, Path(folder))

    def to_report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page; returns its path."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page(self.columns), encoding="utf-8")
        return target

    def _frame(self, name: str) -> Frame:
        from workbench.trace.tables import frame

        return frame(name, getattr(self.columns, name))

    def __repr__(self) -> str:
        run = {name: column[0] for name, column in self.columns.runs.items()}
        return (
            f"Trace({run['steps']} steps, {run['requests']} requests, "
            f"{run['scheduled_tokens']} tokens computed, {run['output_tokens']} generated)"
        )
