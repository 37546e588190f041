"""A trace as Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open. Knows the tables.

Process 1 is the engine: its steps, each from launch to collection, and counters. Process 2 is the requests: a
track each, on which it waits, is in prefill or decode, or is preempted. Times are microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from workbench.trace.schema import COLUMNS, Table, Tables

ENGINE, REQUESTS = 1, 2  # process ids
Slice = dict[str, Any]


def chrome_trace(tables: Tables) -> str:
    """The JSON text."""
    run = {name: column[0] for name, column in tables.runs.items()}
    said = {"schema_version": int(run["schema_version"]), "workbench_version": run["workbench_version"]}
    events = [*_process(ENGINE, "engine"), *_steps(tables.steps), *_counters(tables.steps)]
    events += [*_process(REQUESTS, "requests"), *_requests(tables)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": said}, allow_nan=False)


def _process(pid: int, name: str) -> Iterator[Slice]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}


def _thread(pid: int, tid: int, name: str) -> Slice:
    return {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}


def _slice(pid: int, tid: int, name: str, begin: float, end: float, args: dict[str, Any]) -> Slice:
    # Rounded as points in time, not as lengths: slices that touch shall not overlap by a rounding.
    ts = _us(begin)
    dur = round(max(0.0, _us(end) - ts), 3)
    return {"ph": "X", "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


# --- the engine -----------------------------------------------------------------------------------------


def _steps(steps: Table) -> Iterator[Slice]:
    """Steps that overlap need tracks of their own: each goes to the first that is free."""
    ends: list[float] = []
    for line in range(len(steps["step"])):
        begin, end = float(steps["launched_s"][line]), float(steps["collected_s"][line])
        if math.isnan(begin) or math.isnan(end):
            continue  # in flight, or failed: nobody knows how long
        track = next((track for track, free in enumerate(ends) if free <= begin), len(ends))
        if track == len(ends):
            ends.append(end)
            yield _thread(ENGINE, track + 1, "steps" if not track else f"steps, overlapping {track}")
        ends[track] = end
        yield _slice(ENGINE, track + 1, f"step {steps['step'][line]}", begin, end, _args(steps, line))


def _args(steps: Table, line: int) -> dict[str, Any]:
    """All its columns but missing ones."""
    values = {column.name: steps[column.name][line] for column in COLUMNS["steps"]}
    plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()}
    return {
        name: v for name, v in plain.items() if not (v is None or (isinstance(v, float) and math.isnan(v)))
    }


def _counters(steps: Table) -> Iterator[Slice]:
    shown = {
        "KV blocks": {"held": "blocks_held", "free": "blocks_free"},
        "KV blocks cached": {"cached": "blocks_cached"},
        "running": {"requests": "running"},
        "waiting": {"requests": "waiting"},
    }
    for line, at in enumerate(steps["planned_s"].tolist()):
        for name, series in shown.items():
            args = {label: int(steps[column][line]) for label, column in series.items()}
            yield {"ph": "C", "name": name, "pid": ENGINE, "tid": 0, "ts": _us(at), "args": args}


# --- requests -------------------------------------------------------------------------------------------


class _Stretch(NamedTuple):
    """Steps in a row in which a request did the same."""

    kind: str
    begin: float
    end: float
    first: int  # step
    last: int
    tokens: int


def _requests(tables: Tables) -> Iterator[Slice]:
    requests = tables.requests
    work = _work(tables)
    preempted = _preemptions(tables.events)
    last = _latest(tables)
    for line, name in enumerate(requests["request_id"].tolist()):
        tid = line + 1
        yield _thread(REQUESTS, tid, str(name))
        yield {
            "ph": "M",
            "name": "thread_sort_index",
            "pid": REQUESTS,
            "tid": tid,
            "args": {"sort_index": tid},
        }
        arrived, finished = float(requests["arrived_s"][line]), float(requests["finished_s"][line])
        end = last if math.isnan(finished) else finished
        stretches = _clipped(work.get(name, []), arrived, end)
        yield from _slices(tid, arrived, end, stretches, preempted.get(name, []))


def _latest(tables: Tables) -> float:
    times = [tables.steps["planned_s"], tables.steps["collected_s"], tables.events["at_s"]]
    known = np.concatenate(times)
    return float(np.nanmax(known)) if len(known) and not np.isnan(known).all() else 0.0


def _preemptions(events: Table) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in np.flatnonzero(events["kind"] == "request_preempted").tolist():
        found.setdefault(events["request_id"][line], []).append(float(events["at_s"][line]))
    return found


def _work(tables: Tables) -> dict[str, list[_Stretch]]:
    """Per request: what it did, in the order of the steps."""
    steps, chunks = tables.steps, tables.step_requests
    places = np.searchsorted(steps["step"], chunks["step"])
    begins, ends = steps["launched_s"][places], steps["collected_s"][places]
    kinds = np.where(chunks["dropped"], "dropped", np.where(chunks["prefill"] > 0, "prefill", "decode"))
    found: dict[str, list[_Stretch]] = {}
    columns = (
        chunks["request_id"],
        kinds,
        begins,
        ends,
        chunks["step"],
        chunks["scheduled"],
        chunks["start"],
    )
    reached: dict[str, int] = {}
    for name, kind, begin, end, step, tokens, start in zip(*(c.tolist() for c in columns), strict=True):
        if math.isnan(begin) or math.isnan(end):
            continue
        mine = found.setdefault(name, [])
        goes_on = mine and mine[-1].kind == kind and reached.get(name) == start
        reached[name] = start + tokens
        if goes_on and mine[-1].last + 1 == step:
            mine[-1] = mine[-1]._replace(end=end, last=step, tokens=mine[-1].tokens + tokens)
        else:
            mine.append(_Stretch(kind, begin, end, step, step, tokens))
    return found


def _clipped(stretches: list[_Stretch], arrived: float, end: float) -> Iterator[_Stretch]:
    """On one track slices must not overlap: a stretch begins where the one before ends, and none outlives
    its request."""
    free = -math.inf if math.isnan(arrived) else arrived
    for stretch in stretches:
        clipped = stretch._replace(begin=max(stretch.begin, free), end=min(stretch.end, end))
        if clipped.end > clipped.begin:
            free = clipped.end
            yield clipped


def _slices(
    tid: int, arrived: float, end: float, stretches: Iterable[_Stretch], preempted: list[float]
) -> Iterator[Slice]:
    """Its stretches, and what it did between them: wait before the first, and after a preemption.

    Between two steps nothing is drawn where it only got no token, the budget being spent.
    """
    free, kind = arrived, "waiting"
    left = [at for at in preempted if arrived <= at <= end]
    for stretch in (*stretches, None):
        until = end if stretch is None else stretch.begin
        if kind != "waiting":
            kind = "preempted" if any(at <= until for at in left) else ""
        if kind and until > free:  # false for an arrival nobody recorded
            yield _slice(REQUESTS, tid, kind, free, until, {})
        left, kind = [at for at in left if at > until], ""
        if stretch is not None:
            args = {"tokens": stretch.tokens, "first_step": stretch.first, "last_step": stretch.last}
            yield _slice(REQUESTS, tid, stretch.kind, stretch.begin, stretch.end, args)
            free = stretch.end
