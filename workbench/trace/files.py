"""A trace as a folder of CSV files, one a table: written for spreadsheets and to be read back.

An empty field is a missing value, so that an empty text comes back as a missing one. Knows nothing of events
and of pandas.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.trace.schema import COLUMNS, SCHEMA, SCHEMA_VERSION, Kind, Table, Tables, complete


def write_csv(tables: Tables, folder: Path) -> list[Path]:
    """Write every table as `<name>.csv` into `folder`, which is made; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / f"{name}.csv", name, getattr(tables, name)) for name in SCHEMA]


def read_csv(folder: Path) -> Tables:
    """The tables of a folder that `write_csv` wrote.

    Raises:
        FileNotFoundError: there is no trace in the folder.
        ValueError: the trace has another schema, or a file is damaged.
    """
    missing = [f"{name}.csv" for name in SCHEMA if not (folder / f"{name}.csv").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no trace, {', '.join(missing)} missing: name a folder that to_csv wrote"
        )
    version = _read(folder / "runs.csv", "runs")["schema_version"]
    if len(version) != 1 or version[0] > SCHEMA_VERSION:
        raise ValueError(
            f"{folder} has schema {version.tolist()}, this version reads {SCHEMA_VERSION}: upgrade workbench"
        )
    tables = Tables(*(_read(folder / f"{name}.csv", name) for name in SCHEMA))
    _check_whole(folder, tables)
    return tables


def _check_whole(folder: Path, tables: Tables) -> None:
    """A file cut at the end of a line still looks well: compare with what the run says it has."""
    run = tables.runs
    for name, there, said in (
        ("steps", len(tables.steps["step"]), run["steps"][0]),
        ("requests", len(tables.requests["request_id"]), run["requests"][0]),
        ("tokens", len(tables.tokens["step"]), run["output_tokens"][0]),
        ("step_requests", int(tables.step_requests["scheduled"].sum()), run["scheduled_tokens"][0]),
    ):
        if there != said:
            raise ValueError(f"{folder / name}.csv holds {there}, the run had {said}: it was cut short")


def _write(path: Path, name: str, table: Table) -> Path:
    kinds = [column.kind for column in COLUMNS[name]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*(column.tolist() for column in table.values()), strict=True):
            writer.writerow([_field(value, kind) for value, kind in zip(row, kinds, strict=True)])
    return path


def _field(value: Any, kind: Kind) -> str:
    if value is None or (kind == "float" and math.isnan(value)):
        return ""
    if kind == "bool":
        return "true" if value else "false"
    return repr(value) if kind == "float" else str(value)


_PARSE: dict[Kind, Callable[[str], Any]] = {
    "int": int,
    "float": lambda field: float(field) if field else math.nan,
    "bool": {"true": True, "false": False}.__getitem__,
    "text": lambda field: field or None,
}


def _read(path: Path, name: str) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    expected = [column.name for column in COLUMNS[name]]
    if header != expected:
        raise ValueError(
            f"{path} has the columns {header}, expected {expected}: it is no table of this schema"
        )
    columns: dict[str, list[Any]] = {column: [] for column in expected}
    parsers = [(columns[column.name], _PARSE[column.kind]) for column in COLUMNS[name]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(parsers):
            raise ValueError(
                f"{path} has {len(row)} fields in record {number}, not {len(parsers)}: it is damaged"
            )
        for (column, parse), field in zip(parsers, row, strict=True):
            try:
                column.append(parse(field))
            except (ValueError, KeyError):
                raise ValueError(f"{path} has {field!r} in record {number}: it is damaged") from None
    return complete(name, columns)
