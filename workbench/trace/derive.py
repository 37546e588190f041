"""From events to tables: adds up what a run did, per step, per request and per token.

Knows numpy and the schema; neither pandas nor files. A step costs a few array operations, whoever is in it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.engine.events import Event, StepCommitted, StepPlanned
from workbench.trace.blocks import block_table
from workbench.trace.chunks import Chunks, Reached, chunks_of
from workbench.trace.facts import NAN, Facts, RequestFacts, read
from workbench.trace.picks import Decode, output_texts, read_picks, text_of, token_table
from workbench.trace.recorder import Recording
from workbench.trace.schema import SCHEMA_VERSION, Table, Tables, complete
from workbench.trace.tally import Tally, prompt_lengths, sum_by

Floats = npt.NDArray[np.float64]


def derive(recording: Recording, version: str, decode: Decode | None = None) -> Tables:
    """All tables of a recording.

    Args:
        recording: events, oldest first.
        version: of the package that recorded them.
        decode: text of token ids; without it, texts are missing.
    """
    facts = read(recording.events)
    chunks, tally = chunks_of(facts, Reached()), Tally()
    picks = read_picks(facts, chunks)
    tally.add(len(facts.requests), chunks, picks)
    steps = step_table(facts, chunks)
    requests = request_table(facts, tally, decode)
    requests["output"][:] = output_texts(picks, tally.whole(facts), decode)
    return Tables(
        runs=_runs(facts, steps, requests, recording.dropped_steps, version),
        requests=requests,
        steps=steps,
        step_requests=step_request_table(facts, chunks),
        tokens=token_table(facts, picks, decode),
        blocks=block_table(facts.blocks, facts.began),
        events=_events(facts, recording.events),
    )


# --- the tables -----------------------------------------------------------------------------------------


def step_table(facts: Facts, chunks: Chunks, collected_before: float = NAN) -> Table:
    """A line a step; `collected_before`: when the step before the first was collected."""
    steps, began = facts.steps, facts.began
    planned, size = [step.planned for step in steps], len(steps)
    scheduled = sum_by(chunks.step, chunks.count, size)
    decode = sum_by(chunks.step, chunks.decode, size)
    launched = np.array([s.committed.result.launch_s if s.committed else NAN for s in steps], np.float64)
    collected = np.array([s.committed.result.collect_s if s.committed else NAN for s in steps], np.float64)
    gap = launched - np.concatenate([[collected_before], collected[:-1]]) if size else launched
    columns: dict[str, Any] = {
        "step": [p.plan.index for p in planned],
        "status": [step.status for step in steps],
        "budget": [p.plan.budget for p in planned],
        "scheduled": scheduled,
        "prefill": scheduled - decode,
        "decode": decode,
        "draft": sum_by(chunks.step, chunks.draft, size),
        "accepted": sum_by(chunks.step, chunks.accepted, size),
        "rejected": sum_by(chunks.step, chunks.rejected, size),
        "recomputed": sum_by(chunks.step, chunks.recomputed, size),
        "overshoot": sum_by(chunks.step, chunks.count * chunks.dropped, size),
        "cached": sum_by(chunks.step, chunks.cached, size),
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


def step_request_table(facts: Facts, chunks: Chunks) -> Table:
    """A line for each request in each step."""
    indices = np.array([step.planned.plan.index for step in facts.steps], np.int64)
    return complete(
        "step_requests",
        {
            "step": indices[chunks.step],
            "request_id": facts.names()[chunks.request],
            "adapter": facts.adapters()[chunks.request],
            "row": chunks.row,
            "start": chunks.start,
            "scheduled": chunks.count,
            "prefill": chunks.count - chunks.decode,
            "decode": chunks.decode,
            "draft": chunks.draft,
            "accepted": chunks.accepted,
            "rejected": chunks.rejected,
            "recomputed": chunks.recomputed,
            "cached": chunks.cached,
            "samples": chunks.samples,
            "dropped": chunks.dropped,
        },
    )


def request_table(facts: Facts, tally: Tally, decode: Decode | None) -> Table:
    """A line a request, in order of arrival; what it generated is left out as a text."""
    requests, size = facts.requests, len(facts.requests)
    outputs = tally.outputs(facts)
    first, last = np.where(tally.whole(facts), tally.first_at, NAN), tally.last_at
    arrived, scheduled, finished = (_times(requests, name) for name in ("arrived", "scheduled", "finished"))
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(outputs > 1, (last - first) / (outputs - 1), NAN)
    nothing = np.full(size, None, np.object_)
    columns: dict[str, Any] = {
        "request_id": facts.names(),
        "priority": [r.priority for r in requests],
        "adapter": [r.adapter or None for r in requests],
        "prompt_tokens": prompt_lengths(facts),
        "max_tokens": [r.max_tokens for r in requests],
        "cache_root": [r.cache_root.hex() or None for r in requests],
        "queried_tokens": [r.queried for r in requests],
        "cached_tokens": [r.cached for r in requests],
        "forgone_tokens": [r.forgone for r in requests],
        "output_tokens": outputs,
        "computed_tokens": tally.computed,
        "recomputed_tokens": tally.recomputed,
        "overshoot_tokens": tally.overshoot,
        "preemptions": [r.preemptions for r in requests],
        "accepted_drafts": tally.accepted,
        "rejected_drafts": tally.rejected,
        "queue_s": scheduled - arrived,
        "grammar_s": np.array([_stood_aside(request) for request in requests], np.float64),
        "ttft_s": first - arrived,
        "tpot_s": tpot,
        "e2e_s": finished - arrived,
        "finish_reason": [r.finish_reason for r in requests],
        "stop_reason": [r.stop_reason for r in requests],
        "prompt_token_ids": [r.said_prompt() for r in requests],
        "prompt": [text_of(r.prompt_token_ids.tolist(), decode) for r in requests] if decode else nothing,
        "output": nothing,
    }
    times = {
        "arrived": arrived,
        "scheduled": scheduled,
        "finished": finished,
        "first_token": first,
        "last_token": last,
    }
    return complete("requests", columns | {f"{name}_s": at - facts.began for name, at in times.items()})


def _stood_aside(request: RequestFacts) -> float:
    if not request.aside:
        return 0.0
    ready = request.finished if np.isnan(request.ready) else request.ready
    return ready - request.arrived


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
        "rejected_tokens": [steps["rejected"].sum()],
    }
    for name in ("prompt_tokens", "cached_tokens", "preemptions"):
        columns[name] = [requests[name].sum()]
    return complete("runs", columns)


def _setting(facts: Facts, name: str) -> str | None:
    value = facts.config.get(name)
    return None if value is None else str(value)
