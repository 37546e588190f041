"""A trace as a folder of tables, a file each: CSV, JSON Lines or Parquet; written to be read back.

Beside them `trace.json` says in which format and how many rows each has, so that files of another trace are
passed over and one cut short at the end of a row is noticed.
In CSV an empty field is a missing value, so that an empty text comes back as a missing one. Knows nothing of
events and of pandas.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import workbench
from workbench.errors import MissingExtra
from workbench.trace.journal import FILE, wrong_schema
from workbench.trace.schema import COLUMNS, SCHEMA, SCHEMA_VERSION, Kind, Table, Tables, complete

Format = Literal["csv", "jsonl", "parquet"]
MANIFEST = "trace.json"


class _Way(NamedTuple):
    """How a table is written and read."""

    write: Callable[[Path, str, Table], None]
    read: Callable[[Path, str], Table]


def named(folder: str | Path) -> Path:
    """A folder as people name it."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"the folder is {folder!r}, which is no path: name one, such as 'my-run'")
    name = str(folder)
    try:
        os.fsencode(name)
        possible = bool(name) and "\0" not in name
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"the folder is {name!r}: name one, such as 'my-run'")
    return Path(folder)


def write(tables: Tables, folder: Path, form: Format) -> list[Path]:
    """Write every table as `<name>.<form>` into `folder`, which is made; returns the files."""
    if form == "parquet":
        _pyarrow()  # before anything is made
    if (folder / FILE).exists():
        raise FileExistsError(
            f"{folder} holds a recording, and that is what Trace.load would read there: name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # of an older trace: it comes back when all is written
        written = []
        for name in SCHEMA:
            written.append(folder / f"{name}.{form}")
            _WAYS[form].write(written[-1], name, getattr(tables, name))
        return [*written, _write_manifest(folder, form, tables)]
    except OSError as error:
        raise OSError(
            error.errno, f"{folder} cannot be written ({error.strerror or error}): name another folder"
        ) from None


def read(folder: Path) -> Tables:
    """The tables of a folder that `write` wrote.

    Raises:
        FileNotFoundError: there is no trace in the folder.
        ValueError: the trace has another schema, or a file is damaged.
        MissingExtra: it is in Parquet and pyarrow is not installed.
    """
    form, rows = _read_manifest(folder)
    missing = [f"{name}.{form}" for name in SCHEMA if not (folder / f"{name}.{form}").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no whole trace, {', '.join(missing)} missing: write it again with to_{form}"
        )
    runs = _read_table(folder, form, "runs")
    if runs["schema_version"].tolist() != [SCHEMA_VERSION]:
        raise ValueError(wrong_schema(folder / f"runs.{form}", _one(runs["schema_version"].tolist())))
    tables = Tables(*(_read_table(folder, form, name) for name in SCHEMA))
    _check_whole(folder, form, tables, rows)
    return tables


def _read_table(folder: Path, form: Format, name: str) -> Table:
    path = folder / f"{name}.{form}"
    try:
        return _WAYS[form].read(path, name)
    except (UnicodeDecodeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): write it again") from None


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


# --- the manifest ---------------------------------------------------------------------------------------


def _write_manifest(folder: Path, form: Format, tables: Tables) -> Path:
    said = {
        "format": form,
        "schema_version": SCHEMA_VERSION,
        "workbench_version": workbench.__version__,
        "rows": {name: _num_rows(getattr(tables, name)) for name in SCHEMA},
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return path


def _read_manifest(folder: Path) -> tuple[Format, dict[str, int]]:
    """The format that was written last, and the rows of each table."""
    path = folder / MANIFEST
    if not any((folder / f"runs.{form}").is_file() for form in _WAYS):
        raise FileNotFoundError(
            f"{folder} holds no trace, neither runs.csv, runs.jsonl, runs.parquet nor {FILE}: name a folder"
            " of to_csv, to_jsonl, to_parquet or record(path)"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: the trace was not written to its end")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        version, rows = said["schema_version"], dict(said["rows"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: write the trace again") from None
    if version != SCHEMA_VERSION:
        raise ValueError(wrong_schema(path, version))
    for form in _WAYS:
        if form == said.get("format"):
            return form, rows
    raise ValueError(f"{path} is damaged, of format {said.get('format')!r}: write the trace again")


def _check_whole(folder: Path, form: Format, tables: Tables, rows: dict[str, int]) -> None:
    """A file cut at the end of a row still looks well."""
    for name in SCHEMA:
        there, said = _num_rows(getattr(tables, name)), rows.get(name)
        if there != said:
            raise ValueError(f"{folder / name}.{form} holds {there} rows, not {said}: it was cut short")


def _num_rows(table: Table) -> int:
    return len(next(iter(table.values())))


# --- rows of plain values -------------------------------------------------------------------------------


def _rows(table: Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in table.values()), strict=True)


class _Columns:
    """Columns in the making, of values as a file holds them."""

    def __init__(self, path: Path, name: str, parse: dict[Kind, Callable[[Any], Any]]) -> None:
        self._path, self._name = path, name
        self._values: dict[str, list[Any]] = {column.name: [] for column in COLUMNS[name]}
        self._parsers = [(self._values[column.name], parse[column.kind]) for column in COLUMNS[name]]

    def add(self, fields: Iterable[Any], number: int) -> None:
        """The fields of record `number`, in the order of the schema."""
        for (column, parse), field in zip(self._parsers, fields, strict=True):
            try:
                column.append(parse(field))
            except (ValueError, KeyError, TypeError, OverflowError):
                raise ValueError(
                    f"{self._path} has {field!r} in record {number}: it is damaged, write it again"
                ) from None

    def table(self) -> Table:
        return complete(self._name, self._values)


def _check_columns(path: Path, name: str, found: list[str]) -> None:
    expected = [column.name for column in COLUMNS[name]]
    if found != expected:
        raise ValueError(
            f"{path} has the columns {found}, expected {expected}: it is no table of this schema"
        )


# --- CSV ------------------------------------------------------------------------------------------------


def _write_csv(path: Path, name: str, table: Table) -> None:
    kinds = [column.kind for column in COLUMNS[name]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in _rows(table):
            writer.writerow([_field(value, kind) for value, kind in zip(row, kinds, strict=True)])


def _field(value: Any, kind: Kind) -> str:
    if value is None or (kind == "float" and math.isnan(value)):
        return ""
    if kind == "bool":
        return "true" if value else "false"
    return repr(value) if kind == "float" else str(value)


_FROM_CSV: dict[Kind, Callable[[Any], Any]] = {
    "int": int,
    "float": lambda field: float(field) if field else math.nan,
    "bool": {"true": True, "false": False}.__getitem__,
    "text": lambda field: field or None,
}


def _read_csv(path: Path, name: str) -> Table:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = list(_records(path, file)) or [[]]
    _check_columns(path, name, header)
    columns = _Columns(path, name, _FROM_CSV)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path} has {len(row)} fields in record {number}, not {len(header)}: it is damaged"
            )
        columns.add(row, number)
    return columns.table()


_CSV_FIELD = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^",]*))(,|\Z)')


def _records(path: Path, lines: Iterable[str]) -> Iterator[list[str]]:
    """The records of a CSV file.

    csv.reader refuses fields of more than 131,072 characters, as long prompts are, and its limit can be
    changed for the whole process only.
    """
    held: list[str] = []  # lines of a record whose quotes are still open
    quotes = 0
    for number, line in enumerate(lines, start=1):
        held.append(line)
        quotes += line.count('"')
        if quotes % 2 == 0:
            yield _split(path, "".join(held).rstrip("\r\n"), number)
            held, quotes = [], 0
    if held:
        raise ValueError(f"{path} ends within quotes: it is damaged or cut short")


def _split(path: Path, record: str, number: int) -> list[str]:
    """Its fields; `number`: of its last line."""
    if '"' not in record:
        return record.split(",")
    fields, at, more = [], 0, True
    while more:
        found = _CSV_FIELD.match(record, at)
        if found is None:
            raise ValueError(f"{path} has quotes in the middle of a field in line {number}: it is damaged")
        quoted, plain, comma = found.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        at, more = found.end(), bool(comma)
    return fields


# --- JSON Lines -----------------------------------------------------------------------------------------


def _write_jsonl(path: Path, name: str, table: Table) -> None:
    names = list(table)
    with path.open("w", encoding="utf-8") as file:
        for row in _rows(table):
            said = {key: _json_value(value) for key, value in zip(names, row, strict=True)}
            file.write(json.dumps(said, allow_nan=False, ensure_ascii=False) + "\n")


def _json_value(value: Any) -> Any:
    """JSON has no NaN, which is a missing value here, and no infinity, which is written as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _exactly(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError
        return value

    return check


def _float_or_null(value: Any) -> float:
    if value is None:
        return math.nan
    return float(value) if value in ("inf", "-inf") else _exactly(float)(value)


def _text_or_null(value: Any) -> str | None:
    return None if value is None else _exactly(str)(value)


_FROM_JSON: dict[Kind, Callable[[Any], Any]] = {
    "int": _exactly(int),
    "float": _float_or_null,
    "bool": _exactly(bool),
    "text": _text_or_null,
}


def _read_jsonl(path: Path, name: str) -> Table:
    columns = _Columns(path, name, _FROM_JSON)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                raise ValueError(f"{path} has no JSON in line {number}: it is damaged or cut short") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} has {line[:40]!r} in line {number}: it is damaged")
            _check_columns(path, name, list(row))
            columns.add(row.values(), number)
    return columns.table()


# --- Parquet --------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("Parquet needs pyarrow: pip install 'workbench[parquet]'") from None
    return pyarrow


def _write_parquet(path: Path, name: str, table: Table) -> None:
    arrow = _pyarrow()
    types = {"int": arrow.int64(), "float": arrow.float64(), "bool": arrow.bool_(), "text": arrow.string()}
    arrays = {
        column.name: arrow.array(table[column.name], types[column.kind], from_pandas=True)
        for column in COLUMNS[name]
    }
    arrow.parquet.write_table(arrow.table(arrays), path)


def _read_parquet(path: Path, name: str) -> Table:
    arrow = _pyarrow()
    try:
        table = arrow.parquet.read_table(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({str(error).splitlines()[0]})") from None
    _check_columns(path, name, table.column_names)
    from_parquet: dict[Kind, Callable[[Any], Any]] = _FROM_JSON
    columns = _Columns(path, name, from_parquet)
    for number, row in enumerate(zip(*(c.to_pylist() for c in table.columns), strict=True), start=1):
        columns.add(row, number)
    return columns.table()


_WAYS: dict[Format, _Way] = {
    "csv": _Way(_write_csv, _read_csv),
    "jsonl": _Way(_write_jsonl, _read_jsonl),
    "parquet": _Way(_write_parquet, _read_parquet),
}
