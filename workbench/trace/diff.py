"""Where two runs part: the first decision that differs. Knows the tables; times and texts are no decisions.

What counts are whole numbers, flags and names; floats are times, rates and measures. Steps are counted from
each trace's first one, and batch rows and blocks are numbered as they appear in it, since which of the free
ones are taken depends on what ran before: two recordings of one engine can be compared.
"""

from __future__ import annotations

from collections import Counter
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
_NUMBERED = ("row", "block")


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
        difference = _first(table, _aligned(a, table, names[0]), _aligned(b, table, names[1]))
        if difference:
            found.append(difference)
    if found:
        # min keeps the first of equals, and so the order of the tables
        return min(found, key=lambda each: -1 if each.step is None else each.step)
    last = _first("requests", _aligned(a, "requests", names[0]), _aligned(b, "requests", names[1]))
    return last or Difference()


def _by_step() -> list[str]:
    tables = [name for name in SCHEMA if name not in _APART and any(c.name == "step" for c in COLUMNS[name])]
    return sorted(tables, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


def _names(a: Tables, b: Tables) -> tuple[list[str], list[str]]:
    """What the requests, line by line, are called: as they are, or, where the ids differ, by their place."""
    names = _told_apart(a), _told_apart(b)
    if set(names[0]) == set(names[1]) or len(names[0]) != len(names[1]):
        return names
    return names[0], names[0]


def _told_apart(tables: Tables) -> list[str]:
    """Ids of the requests; one that was used before says so."""
    used: Counter[str] = Counter()
    names = []
    for request_id in tables.requests["request_id"].tolist():
        used[request_id] += 1
        names.append(request_id if used[request_id] == 1 else f"{request_id} ({used[request_id]})")
    return names


def _aligned(tables: Tables, name: str, names: list[str]) -> Table:
    """Steps from the first one on, requests by their common names, rows and blocks as they appear."""
    aligned = dict(getattr(tables, name))
    steps = tables.steps["step"]
    if "step" in aligned and len(steps):
        aligned["step"] = aligned["step"] - steps.min()
    if "request_id" in aligned:
        aligned["request_id"] = _named(tables, name, names)
    for column in _NUMBERED:
        if column in aligned:
            aligned[column] = _as_they_appear(aligned[column])
    return aligned


def _named(tables: Tables, name: str, names: list[str]) -> npt.NDArray[Any]:
    """The requests of a table's lines by these names."""
    named = np.empty(len(getattr(tables, name)["request_id"]), np.object_)
    if name == "requests":
        named[:] = names
        return named
    arrivals: dict[str, list[tuple[float, str]]] = {}
    known = zip(
        tables.requests["request_id"].tolist(), tables.requests["arrived_s"].tolist(), names, strict=True
    )
    for request_id, arrived, common in known:
        arrivals.setdefault(request_id, []).append((arrived, common))
    named[:] = [
        _latest(arrivals.get(request_id), at, request_id)
        for request_id, at in zip(
            getattr(tables, name)["request_id"].tolist(), _times(tables, name), strict=True
        )
    ]
    return named


def _latest(arrivals: list[tuple[float, str]] | None, at: float, request_id: str | None) -> str | None:
    """Whose id it was then: an id is used again only when its request has ended."""
    if arrivals is None:
        return request_id
    later = (common for arrived, common in reversed(arrivals[1:]) if arrived <= at)
    return next(later, arrivals[0][1])


def _times(tables: Tables, name: str) -> list[float]:
    """When each line of a table was decided."""
    table = getattr(tables, name)
    if "at_s" in table:
        return list(table["at_s"].tolist())
    places = np.searchsorted(tables.steps["step"], table["step"])
    return list(tables.steps["planned_s"][places].tolist())


def _as_they_appear(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """0 for the number that comes first, 1 for the next other one ..."""
    _, first, places = np.unique(numbers, return_index=True, return_inverse=True)
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[places.reshape(-1)]


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
