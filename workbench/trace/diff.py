"""Where two runs part: the first decision that differs. Knows the tables; times and texts are no decisions.

What counts are whole numbers, flags and names; floats are times, rates and measures. Steps are counted from
each trace's first one, so that two recordings of one engine can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.trace.schema import COLUMNS, SCHEMA, Table, Tables

# Who got what is said first, for it is the decision; the sums over a step follow from it.
_FIRST = ("step_requests", "blocks", "tokens")
_APART = ("runs", "events", "requests")  # totals; the same once more; compared at the end
# Made from token ids, or of what a model thought and nobody took.
_SAID = ("text", "prompt", "output", "detail", "key", "top_ids", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first decision in which two runs part; false where there is none."""

    table: str | None = None  # None: the runs decided alike
    step: int | None = None  # from the first of the trace; None: it belongs to no step
    request_id: str | None = None
    field: str | None = None  # None: one run has a row that the other has not
    a: object = None  # what the one run did; None where it has no such row
    b: object = None  # what the other did

    def __bool__(self) -> bool:
        return self.table is not None

    def __str__(self) -> str:
        if self.table is None:
            return "no difference: both runs decided alike"
        where = [] if self.step is None else [f"step {self.step}"]
        where += [] if self.request_id is None else [f"request {self.request_id}"]
        what = f"{self.table}.{self.field}" if self.field else f"a row of {self.table}"
        return f"{', '.join(where) or 'the runs'}: {what} is {_said(self.a)} and {_said(self.b)}"


def _said(value: object) -> str:
    return "missing" if value is None else repr(value)


def compare(a: Tables, b: Tables) -> Difference:
    """The first difference in the order of the steps, and within a step of the tables."""
    names = _names(a, b)
    found: list[Difference] = []
    for table in _by_step():
        difference = _first(
            table, _aligned(getattr(a, table), names[0]), _aligned(getattr(b, table), names[1])
        )
        if difference:
            found.append(difference)
    if found:
        # min keeps the first of equals, and so the order of the tables
        return min(found, key=lambda each: -1 if each.step is None else each.step)
    return _first("requests", _aligned(a.requests, names[0]), _aligned(b.requests, names[1])) or Difference()


def _by_step() -> list[str]:
    tables = [name for name in SCHEMA if name not in _APART and any(c.name == "step" for c in COLUMNS[name])]
    return sorted(tables, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _names(a: Tables, b: Tables) -> tuple[dict[str, str], dict[str, str]]:
    """What requests are called in the comparison: as they are, or, where the ids differ, by their place."""
    ids = [tables.requests["request_id"].tolist() for tables in (a, b)]
    if set(ids[0]) == set(ids[1]) or len(ids[0]) != len(ids[1]):
        return {}, {}
    return {}, dict(zip(ids[1], ids[0], strict=True))


def _aligned(table: Table, names: dict[str, str]) -> Table:
    """Steps from the first one on, requests by their common names."""
    aligned = dict(table)
    step = aligned.get("step")
    if step is not None and len(step):
        aligned["step"] = step - np.nanmin(step)
    if names and "request_id" in aligned:
        column = np.empty(len(aligned["request_id"]), np.object_)
        column[:] = [names.get(name, name) for name in aligned["request_id"].tolist()]
        aligned["request_id"] = column
    return aligned


def _decisions(table: str) -> Iterator[str]:
    for column in COLUMNS[table]:
        if column.kind != "float" and column.name not in _SAID:
            yield column.name


def _first(table: str, a: Table, b: Table) -> Difference | None:
    """The first row in which two tables differ."""
    sizes = len(next(iter(a.values()))), len(next(iter(b.values())))
    common = min(sizes)
    fields = list(_decisions(table))
    places = {name: place for name in fields if (place := _parts(a[name][:common], b[name][:common])) >= 0}
    if places:
        line = min(places.values())
        field = next(name for name in fields if places.get(name) == line)
        return _difference(table, a, b, line, field)
    if sizes[0] == sizes[1]:
        return None
    return _extra(table, a if sizes[0] > common else b, common, first=sizes[0] > common)


def _parts(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    """Where two columns differ first; -1: nowhere."""
    places = np.flatnonzero(a != b)
    return int(places[0]) if len(places) else -1


def _difference(table: str, a: Table, b: Table, line: int, field: str) -> Difference:
    """Rows that are of different steps or requests are different rows: the earlier step has one too many."""
    if field == "step":
        longer, first = (a, True) if a["step"][line] < b["step"][line] else (b, False)
        return _extra(table, longer, line, first=first)
    step = a.get("step")
    request_id = None if field == "request_id" else _plain(a, "request_id", line)
    return Difference(
        table,
        None if step is None else int(step[line]),
        None if request_id is None else str(request_id),
        field,
        _plain(a, field, line),
        _plain(b, field, line),
    )


def _extra(table: str, longer: Table, line: int, *, first: bool) -> Difference:
    """A row that only one of the runs has."""
    row = {name: _plain(longer, name, line) for name in _decisions(table)}
    step, request_id = row.pop("step", None), row.pop("request_id", None)
    said = ", ".join(f"{name} {value}" for name, value in row.items())
    return Difference(
        table,
        None if step is None else int(step),
        None if request_id is None else str(request_id),
        None,
        said if first else None,
        None if first else said,
    )


def _plain(table: Table, name: str, line: int) -> Any:
    if name not in table:
        return None
    value = table[name][line]
    return value.item() if isinstance(value, np.generic) else value
