"""From events to tables: adds up what a run did, per step, per request and per token.

Knows numpy and the schema; neither pandas nor files. A step costs a few array operations, whoever is in it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.engine.events import Event, StepCommitted, StepPlanned
from workbench.trace.blocks import block_table
from workbench.trace.facts import NAN, NONE, Facts, Longs, RequestFacts, StepFacts, read
from workbench.trace.picks import Decode, Picks, output_texts, read_picks, text_of, token_table
from workbench.trace.recorder import Recording
from workbench.trace.schema import SCHEMA_VERSION, Table, Tables, complete

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def derive(recording: Recording, version: str, decode: Decode | None = None) -> Tables:
    """All tables of a recording.

    Args:
        recording: events, oldest first.
        version: of the package that recorded them.
        decode: text of token ids; without it, texts are missing.
    """
    facts = read(recording.events)
    chunks, picks = _chunks(facts), read_picks(facts)
    steps = _steps(facts, chunks)
    requests = _requests(facts, chunks, picks, decode)
    return Tables(
        runs=_runs(facts, steps, requests, recording.dropped_steps, version),
        requests=requests,
        steps=steps,
        step_requests=_step_requests(facts, chunks),
        tokens=token_table(facts, picks, decode),
        blocks=block_table(facts.blocks, facts.began),
        events=_events(facts, recording.events),
    )


# --- one line a request and step ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chunks:
    """Who computed what: columns with a line for each request of each step, in step order."""

    step: Longs  # place of the step in facts.steps
    request: Longs  # number of the request
    row: Longs
    start: Longs
    count: Longs
    samples: Bools
    dropped: Bools
    cached: Longs  # found at an admission in this step; 0 elsewhere
    recomputed: Longs
    decode: Longs


def _chunks(facts: Facts) -> Chunks:
    plans = [step.planned.plan for step in facts.steps]
    step = np.repeat(np.arange(len(plans)), [len(plan.rows) for plan in plans])
    request = _join(facts.steps, lambda s: s.requests)
    start = _join(facts.steps, lambda s: s.planned.plan.starts)
    count = _join(facts.steps, lambda s: s.planned.plan.counts)
    dropped = _join(facts.steps, StepFacts.dropped).astype(np.bool_)
    admitted, cached, beyond = _admissions(facts, step, request)
    reached = _reached(request, start, start + count, dropped, admitted)
    prompt = np.array([len(r.prompt_token_ids) for r in facts.requests], np.int64)[request]
    # [start, reached)  computed before;  [start, prompt)  prefill;  [max(prompt, reached), end)  decode
    again = np.where(dropped, 0, np.clip(np.minimum(start + count, reached) - start, 0, None))
    new = np.maximum(prompt, np.where(dropped, 0, reached))
    return Chunks(
        step=step,
        request=request,
        row=_join(facts.steps, lambda s: s.planned.plan.rows),
        start=start,
        count=count,
        samples=_join(facts.steps, lambda s: s.planned.plan.samples).astype(np.bool_),
        dropped=dropped,
        cached=cached,
        recomputed=again - beyond,
        decode=np.clip(start + count - np.maximum(start, new), 0, None),
    )


def _join(steps: list[StepFacts], column: Callable[[StepFacts], npt.NDArray[Any]]) -> Longs:
    return np.concatenate([column(step) for step in steps]).astype(np.int64) if steps else NONE


def _admissions(facts: Facts, step: Longs, request: Longs) -> tuple[Bools, Longs, Longs]:
    """Per line: admitted in this step; tokens found then; of them, those beyond what it had computed before.

    What a resumed request finds beyond its own work was neither computed by it nor found when it was first
    scheduled; taking it off what is recomputed keeps the sum rule exact.
    """
    admitted = np.zeros(len(step), np.bool_)
    cached, beyond = np.zeros(len(step), np.int64), np.zeros(len(step), np.int64)
    first_line = np.searchsorted(step, np.arange(len(facts.steps)))
    for place, facts_of_step in enumerate(facts.steps):
        for number, event in facts_of_step.admitted.items():
            line = first_line[place] + int(np.flatnonzero(facts_of_step.requests == number)[0])
            admitted[line] = True
            cached[line] = event.num_cached_tokens
            if event.resumed:
                beyond[line] = max(0, event.num_cached_tokens - event.num_reached)
    return admitted, cached, beyond


def _reached(request: Longs, start: Longs, end: Longs, dropped: Bools, admitted: Bools) -> Longs:
    """Per line: how far its request had come in earlier lines, dropped work aside."""
    came = np.where(dropped, np.where(admitted, start, 0), end)
    order = np.argsort(request, kind="stable")
    # One running maximum over all requests: each is lifted above the last by more than any length.
    lift = request[order] * (int(end.max(initial=0)) + 1)
    running = np.maximum.accumulate(came[order] + lift) - lift
    first = np.flatnonzero(np.diff(request[order], prepend=-1))
    before = np.roll(running, 1)
    before[first] = 0
    reached = np.empty_like(before)
    reached[order] = before
    return reached


def _sum_by(keys: Longs, values: npt.NDArray[Any], size: int) -> Longs:
    return np.bincount(keys, weights=values, minlength=size).astype(np.int64)


# --- the tables -----------------------------------------------------------------------------------------


def _steps(facts: Facts, chunks: Chunks) -> Table:
    steps, began = facts.steps, facts.began
    planned, size = [step.planned for step in steps], len(steps)
    scheduled = _sum_by(chunks.step, chunks.count, size)
    decode = _sum_by(chunks.step, chunks.decode, size)
    launched = np.array([s.committed.result.launch_s if s.committed else NAN for s in steps], np.float64)
    collected = np.array([s.committed.result.collect_s if s.committed else NAN for s in steps], np.float64)
    gap = launched - np.concatenate([[NAN], collected[:-1]]) if size else launched
    columns: dict[str, Any] = {
        "step": [p.plan.index for p in planned],
        "status": [step.status for step in steps],
        "budget": [p.plan.budget for p in planned],
        "scheduled": scheduled,
        "prefill": scheduled - decode,
        "decode": decode,
        "draft": np.zeros(size, np.int64),
        "recomputed": _sum_by(chunks.step, chunks.recomputed, size),
        "overshoot": _sum_by(chunks.step, chunks.count * chunks.dropped, size),
        "cached": _sum_by(chunks.step, chunks.cached, size),
        "requests": [len(p.plan.rows) for p in planned],
        "admitted": [len(step.admitted) for step in steps],
        "preempted": [step.num_preempted for step in steps],
        "sampled": [len(step.takers) for step in steps],
        "forced": [s.committed.num_followed if s.committed else 0 for s in steps],
        "planned_s": np.array([p.at for p in planned]) - began,
        "launched_s": launched - began,
        "collected_s": collected - began,
        "host_s": [
            p.plan_s + (s.committed.commit_s if s.committed else NAN)
            for p, s in zip(planned, steps, strict=True)
        ],
        "device_s": [step.committed.result.device_s if step.committed else NAN for step in steps],
        "gap_s": np.clip(gap, 0.0, None),
    }
    for name in ("running", "waiting", "blocks_free", "blocks_held", "blocks_cached"):
        columns[name] = [getattr(p, name) for p in planned]
    return complete("steps", columns)


def _step_requests(facts: Facts, chunks: Chunks) -> Table:
    indices = np.array([step.planned.plan.index for step in facts.steps], np.int64)
    return complete(
        "step_requests",
        {
            "step": indices[chunks.step],
            "request_id": facts.names()[chunks.request],
            "row": chunks.row,
            "start": chunks.start,
            "scheduled": chunks.count,
            "prefill": chunks.count - chunks.decode,
            "decode": chunks.decode,
            "recomputed": chunks.recomputed,
            "cached": chunks.cached,
            "samples": chunks.samples,
            "dropped": chunks.dropped,
        },
    )


def _requests(facts: Facts, chunks: Chunks, picks: Picks, decode: Decode | None) -> Table:
    requests, size = facts.requests, len(facts.requests)
    outputs, whole = _outputs(facts, picks)
    first, last = np.full(size, NAN), np.full(size, NAN)
    last[picks.request] = picks.at  # the last line of a request wins
    first[picks.request[::-1]] = picks.at[::-1]
    first[~whole] = NAN
    arrived, scheduled, finished = (_times(requests, name) for name in ("arrived", "scheduled", "finished"))
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(outputs > 1, (last - first) / (outputs - 1), NAN)
    columns: dict[str, Any] = {
        "request_id": facts.names(),
        "priority": [r.priority for r in requests],
        "prompt_tokens": [len(r.prompt_token_ids) for r in requests],
        "max_tokens": [r.max_tokens for r in requests],
        "cache_root": [r.cache_root.hex() or None for r in requests],
        "queried_tokens": [r.queried for r in requests],
        "cached_tokens": [r.cached for r in requests],
        "forgone_tokens": [r.forgone for r in requests],
        "output_tokens": outputs,
        "computed_tokens": _sum_by(chunks.request, chunks.count, size),
        "recomputed_tokens": _sum_by(chunks.request, chunks.recomputed, size),
        "overshoot_tokens": _sum_by(chunks.request, chunks.count * chunks.dropped, size),
        "preemptions": [r.preemptions for r in requests],
        "accepted_drafts": np.zeros(size, np.int64),
        "queue_s": scheduled - arrived,
        "ttft_s": first - arrived,
        "tpot_s": tpot,
        "e2e_s": finished - arrived,
        "finish_reason": [r.finish_reason for r in requests],
        "stop_reason": [r.stop_reason for r in requests],
        "prompt": [text_of(r.prompt_token_ids.tolist(), decode) for r in requests],
        "output": output_texts(picks, whole, decode),
    }
    times = {
        "arrived": arrived,
        "scheduled": scheduled,
        "finished": finished,
        "first_token": first,
        "last_token": last,
    }
    return complete("requests", columns | {f"{name}_s": at - facts.began for name, at in times.items()})


def _outputs(facts: Facts, picks: Picks) -> tuple[Longs, Bools]:
    """Per request: how many tokens it generated; whether the trace holds them from the first one on."""
    size = len(facts.requests)
    prompt = np.array([len(r.prompt_token_ids) for r in facts.requests], np.int64)
    index = picks.position - prompt[picks.request]
    held = np.bincount(picks.request, minlength=size).astype(np.int64)
    reached, first = np.zeros(size, np.int64), np.zeros(size, np.int64)
    reached[picks.request] = index + 1
    first[picks.request[::-1]] = index[::-1]
    reached = np.where(prompt > 0, reached, held)  # of an unknown prompt places say nothing
    told = [r.num_output for r in facts.requests]
    outputs = np.array([r if t is None else t for r, t in zip(reached, told, strict=True)], np.int64)
    nothing_yet = np.array([not (r.num_output or r.ran_before) for r in facts.requests], np.bool_)
    return outputs, (first == 0) & ((held > 0) | nothing_yet)


def _times(requests: list[RequestFacts], name: str) -> Floats:
    return np.array([getattr(request, name) for request in requests], np.float64)


def _events(facts: Facts, events: list[Event]) -> Table:
    return complete(
        "events",
        {
            "at_s": np.array([event.at for event in events], np.float64) - facts.began,
            "kind": [_snake(type(event).__name__) for event in events],
            "step": [_step_of(event) for event in events],
            "request_id": [getattr(event, "request_id", None) for event in events],
            "detail": [json.dumps(_detail(event)) for event in events],
        },
    )


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _step_of(event: Event) -> float:
    if isinstance(event, StepPlanned):
        return event.plan.index
    if isinstance(event, StepCommitted):
        return event.result.index
    step: float = getattr(event, "step", getattr(event, "index", NAN))
    return step


def _detail(event: Event) -> dict[str, object]:
    """Its plain fields; of arrays and names, how many."""
    said: dict[str, object] = {}
    for name in (f.name for f in dataclasses.fields(event)):
        value = getattr(event, name)
        if name in ("at", "step", "index", "request_id", "plan", "result"):
            continue
        said[name] = len(value) if isinstance(value, np.ndarray | tuple) else plain(value)
    return said


def plain(value: object) -> object:
    """A value that JSON can hold."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | None) else str(value)


def _runs(facts: Facts, steps: Table, requests: Table, dropped_steps: int, version: str) -> Table:
    first = facts.steps[0].planned if facts.steps else None
    columns: dict[str, Any] = {
        "schema_version": [SCHEMA_VERSION],
        "workbench_version": [version],
        "model": [_setting(facts, "model")],
        "device": [_setting(facts, "device")],
        "config": [json.dumps(plain(facts.config))],
        "wall_s": [facts.ended - (first.at - first.plan_s) if first else 0.0],
        "steps": [len(facts.steps)],
        "dropped_steps": [dropped_steps],
        "mid_run": [facts.mid_run or dropped_steps > 0],
        "requests": [len(facts.requests)],
        "output_tokens": [steps["sampled"].sum() + steps["forced"].sum()],
        "scheduled_tokens": [steps["scheduled"].sum()],
        "overshoot_tokens": [steps["overshoot"].sum()],
        "recomputed_tokens": [steps["recomputed"].sum()],
    }
    for name in ("prompt_tokens", "cached_tokens", "preemptions"):
        columns[name] = [requests[name].sum()]
    return complete("runs", columns)


def _setting(facts: Facts, name: str) -> str | None:
    value = facts.config.get(name)
    return None if value is None else str(value)
