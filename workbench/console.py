"""The one place that writes to the terminal: lines, aligned tables, and a block of lines redrawn in place.

Knows nothing of what it shows. The library itself logs; only commands write here.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO


class OutputClosed(BrokenPipeError):
    """Whoever read our output, such as `head`, had enough: no error, but nothing is left to do."""


def say(*lines: str, to: TextIO | None = None) -> None:
    """Write lines to `to`, by default standard output; OutputClosed when nobody reads it any more."""
    stream = to or sys.stdout
    with _somebody_reads(stream):
        stream.write("\n".join(lines) + "\n")
        stream.flush()


def flush() -> None:
    """Bring out what others have written to standard output; OutputClosed when nobody reads it any more."""
    with _somebody_reads(sys.stdout):
        sys.stdout.flush()


@contextmanager
def _somebody_reads(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        # What is still in the buffer would raise once more when Python exits: it goes nowhere instead.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise OutputClosed from error


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table: numbers to the right, text to the left, two spaces between columns."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    numeric = [_is_numeric(column) for column in zip(*body, strict=True)] or [False] * len(header)
    return [_line(cells, widths, numeric) for cells in [list(header), ["─" * w for w in widths], *body]]


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_numeric(column: Sequence[str]) -> bool:
    return all(cell.lstrip("-").replace(".", "", 1).replace(",", "").isdecimal() for cell in column if cell)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    placed = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(placed).rstrip()


class Live:
    """A block of lines that follows what happens: redrawn in place on a terminal, else one line now and then.

    ::

        with Live() as live:
            live.show(["step 3", "running 5"], plain="step 3, 5 running")
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._height = 0  # lines of ours on the screen, above the cursor
        self.is_terminal = self._stream.isatty()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._height = 0

    def show(self, lines: Sequence[str], plain: str | None = None) -> None:
        """Replace the block by `lines`; where there is no terminal, write `plain` unless it is None."""
        if self.is_terminal:
            self._redraw(lines)
        elif plain is not None:
            say(plain, to=self._stream)

    def _redraw(self, lines: Sequence[str]) -> None:
        # A wrapped line would be two, and what has scrolled off the top cannot be redrawn.
        width, height = shutil.get_terminal_size()
        shown = [line[: width - 1] for line in lines[: height - 1]]
        up = f"\x1b[{self._height}A" if self._height else ""
        body = "".join(f"\x1b[2K{line}\n" for line in shown)
        self._stream.write(f"{up}\r{body}\x1b[J")
        self._stream.flush()
        self._height = len(shown)
