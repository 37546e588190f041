"""Who computed what: a line for each request of each step, worked out from facts. Knows numpy; no table.

A run may be taken a batch of steps at a time: what a line says depends on the lines before it only through
how far its request had come, which `Reached` remembers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.trace.facts import NONE, Facts, Longs, StepFacts

Bools = npt.NDArray[np.bool_]


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
    draft: Longs  # of decode
    accepted: Longs  # of draft
    rejected: Longs  # of draft; those of a dropped chunk are neither


class Reached:
    """How far each request has come, dropped work aside."""

    def __init__(self) -> None:
        self._positions = NONE  # by the requests' numbers

    def pass_by(self, request: Longs, came: Longs) -> Longs:
        """Per line: how far its request had come in earlier lines; `came`: how far it is with this one."""
        missing = int(request.max(initial=-1)) + 1 - len(self._positions)
        self._positions = np.pad(self._positions, (0, max(missing, 0)))
        order = np.argsort(request, kind="stable")
        # One running maximum over all requests: each is lifted above the last by more than any length.
        lift = request[order] * (int(max(came.max(initial=0), self._positions.max(initial=0))) + 1)
        first = np.flatnonzero(np.diff(request[order], prepend=-1))
        running = came[order] + lift
        running[first] = np.maximum(running[first], (self._positions[request[order]] + lift)[first])
        running = np.maximum.accumulate(running) - lift
        before = np.roll(running, 1)
        before[first] = self._positions[request[order]][first]
        self._positions[request[order]] = running  # the last line of a request wins
        reached = np.empty_like(before)
        reached[order] = before
        return reached


def chunks_of(facts: Facts, reached_before: Reached) -> Chunks:
    """The lines of all steps of `facts`; `reached_before` moves on with them."""
    plans = [step.planned.plan for step in facts.steps]
    step = np.repeat(np.arange(len(plans)), [len(plan.rows) for plan in plans])
    request = _join(facts.steps, lambda s: s.requests)
    start = _join(facts.steps, lambda s: s.planned.plan.starts)
    count = _join(facts.steps, lambda s: s.planned.plan.counts)
    samples = _join(facts.steps, lambda s: s.planned.plan.samples).astype(np.bool_)
    dropped = _dropped(facts.steps, step, samples)
    draft, accepted = np.zeros((2, len(step)), np.int64)
    if any(plan.drafts is not None for plan in plans):
        draft, accepted = _join(facts.steps, StepFacts.drafts), _join(facts.steps, StepFacts.accepted)
    rejected = np.where(dropped, 0, draft - accepted)
    admitted, cached, beyond = _admissions(facts, step, request)
    came = np.where(dropped, np.where(admitted, start, 0), start + count - rejected)
    reached = reached_before.pass_by(request, came)
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
        samples=samples,
        dropped=dropped,
        cached=cached,
        recomputed=again - beyond,
        decode=np.clip(start + count - np.maximum(start, new), 0, None),
        draft=draft,
        accepted=accepted,
        rejected=rejected,
    )


def _join(steps: list[StepFacts], column: Callable[[StepFacts], npt.NDArray[Any]]) -> Longs:
    return np.concatenate([column(step) for step in steps]).astype(np.int64) if steps else NONE


def _dropped(steps: list[StepFacts], step: Longs, samples: Bools) -> Bools:
    """Lines whose outcome nobody took. Most steps have none: as many took a token as were to."""
    dropped = np.zeros(len(samples), np.bool_)
    wanted = np.bincount(step[samples], minlength=len(steps)).tolist()
    bounds = np.searchsorted(step, np.arange(len(steps) + 1))
    for place, (each, count) in enumerate(zip(steps, wanted, strict=True)):
        drafts = each.planned.plan.drafts is not None
        if drafts or each.failed or each.lost or len(each.takers) != count:
            dropped[bounds[place] : bounds[place + 1]] = each.dropped()
    return dropped


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
            line = first_line[place] + int((facts_of_step.requests == number).argmax())
            admitted[line] = True
            cached[line] = event.num_cached_tokens
            if event.resumed:
                beyond[line] = max(0, event.num_cached_tokens - event.num_reached)
    return admitted, cached, beyond
