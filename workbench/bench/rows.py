"""What a benchmark found, as rows: a line each of a table and of a CSV file. Knows no benchmark."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
ORIGIN = ("date", "device", "torch", "triton", "workbench", "commit")  # of `provenance`: a row begins with it


class Result(NamedTuple):
    """What a benchmark found."""

    title: str
    rows: list[Row]  # a line each of the table and of the CSV
    summary: dict[str, Any]  # beside the rows in the JSON object
    shown: Sequence[str] | None = None  # columns of the table, where the rows have more; None: all


def of_origin(row: Row) -> Row:
    """Where and with what a row was measured."""
    return {name: row[name] for name in ORIGIN}


def append(file: Path, rows: Sequence[Row]) -> None:
    """Add rows to a CSV file, with a header when it is new.

    Raises:
        ValueError: the file has other columns than the rows.
    """
    columns = list(rows[0])
    found = _header(file)
    if found and found != columns:
        raise ValueError(
            f"{file} has the columns {','.join(found)} and the rows have {','.join(columns)}:"
            " give another file with -o"
        )
    with file.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        if not found:
            writer.writeheader()
        writer.writerows(rows)


def _header(file: Path) -> list[str]:
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as handle:
        return next(csv.reader(handle), [])
