"""Reads events once, in order, and sorts what they say by request and by step. Computes no table.

Requests are numbered as they arrive, so that an id used again is another request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.engine.events import (
    BlocksChanged,
    EngineStarted,
    Event,
    RequestAdmitted,
    RequestArrived,
    RequestFinished,
    RequestPreempted,
    RequestReady,
    StepCommitted,
    StepFailed,
    StepPlanned,
)

Longs = npt.NDArray[np.int64]
NONE: Longs = np.empty(0, np.int64)
NAN = float("nan")
NO_LOGPROBS = -1
_NOBODY: Mapping[int, RequestAdmitted] = MappingProxyType({})  # one for all: ten thousand are much to collect
UNKNOWN = 2**31  # its admission was not recorded: what there is was asked for


@dataclass(slots=True)
class RequestFacts:
    """What was said of one request. NaN: not said yet."""

    request_id: str
    prompt_token_ids: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    max_tokens: int = 0
    priority: int = 0
    adapter: str = ""
    cache_root: bytes = b""
    queried: int = 0
    cached: int = 0
    forgone: int = 0
    logprobs: int = UNKNOWN  # top logprobs it asked for; NO_LOGPROBS: none, not even the sampled token's
    preemptions: int = 0
    arrived: float = NAN
    aside: bool = False  # it needed what was not there when it arrived
    ready: float = NAN  # that was there
    scheduled: float = NAN
    finished: float = NAN
    finish_reason: str | None = None
    stop_reason: str | None = None
    num_output: int | None = None  # as it was told at its end
    ran_before: bool = False  # it was admitted before the first step that was kept
    _prompt: str | None = None  # as text, once it was asked for

    def said_prompt(self) -> str | None:
        """The prompt's token ids as a JSON list; None where nobody said them."""
        if self._prompt is None and len(self.prompt_token_ids):
            self._prompt = str(self.prompt_token_ids.tolist())  # of ints that is JSON, in a third of the time
        return self._prompt


@dataclass(slots=True)
class StepFacts:
    """What was said of one step."""

    planned: StepPlanned
    requests: Longs  # [n]; numbers of the requests in the plan's rows
    admitted: Mapping[int, RequestAdmitted]  # by the request's number
    num_preempted: int
    committed: StepCommitted | None = None
    takers: Longs = field(default_factory=lambda: NONE)  # [k]; numbers of the requests that took a token
    followers: Longs = field(default_factory=lambda: NONE)  # [f]; of those that took tokens unsampled
    failed: bool = False
    lost: frozenset[int] = frozenset()  # requests that ended or were preempted while it was in flight

    @property
    def status(self) -> str:
        if self.failed:
            return "failed"
        return "committed" if self.committed else "in flight"

    def drafts(self) -> Longs:
        """[n]; drafts that each row verifies."""
        return self._spread(None if self.planned.plan.drafts is None else self.planned.plan.drafts.counts)

    def accepted(self) -> Longs:
        """[n]; of them, those that the row's request went on from."""
        return self._spread(None if self.committed is None or self.failed else self.committed.accepted)

    def _spread(self, counts: npt.NDArray[np.int32] | None) -> Longs:
        spread, drafts = np.zeros(len(self.requests), np.int64), self.planned.plan.drafts
        if drafts is not None and counts is not None:
            spread[drafts.lines] = counts
        return spread

    def dropped(self) -> npt.NDArray[np.bool_]:
        """[n]; rows whose outcome nobody took."""
        samples = self.planned.plan.samples
        if self.failed:
            return np.ones(len(samples), np.bool_)
        lost = np.isin(self.requests, list(self.lost)) if self.lost else np.zeros(len(samples), np.bool_)
        if self.committed is None:
            return lost
        return ~np.isin(self.requests, self.takers) & (samples | lost)


@dataclass(slots=True)
class Facts:
    """Everything said, by request and by step."""

    requests: list[RequestFacts] = field(default_factory=list)  # in order of arrival
    steps: list[StepFacts] = field(default_factory=list)  # in order of planning
    blocks: list[BlocksChanged] = field(default_factory=list)
    config: dict[str, object] = field(default_factory=dict)
    began_late: bool = False  # there are events whose beginnings nobody kept
    began: float = NAN  # clock reading all times are relative to
    ended: float = NAN

    @property
    def mid_run(self) -> bool:
        """Whether somebody ran, or a step was in flight, before the first step that was kept."""
        return self.began_late or any(request.ran_before for request in self.requests)

    def names(self) -> npt.NDArray[np.object_]:
        """Ids by the requests' numbers."""
        names = np.empty(len(self.requests), np.object_)
        names[:] = [request.request_id for request in self.requests]
        return names

    def adapters(self) -> npt.NDArray[np.object_]:
        """Of the requests, by their numbers; None: the base model."""
        found = np.empty(len(self.requests), np.object_)
        found[:] = [request.adapter or None for request in self.requests]
        return found


def read(events: Iterable[Event]) -> Facts:
    """Sort events into facts."""
    reader = Reader()
    reader.take(events)
    return reader.facts


class Reader:
    """Takes events in order; `facts` is what they said so far, `settled` hands out what is final."""

    def __init__(self) -> None:
        self.facts = Facts()
        self._began = False  # a step was planned
        self._numbers: dict[str, int] = {}  # the latest request of each id
        self._open: dict[int, StepFacts] = {}  # planned, neither committed nor failed
        self._admitted: dict[int, RequestAdmitted] = {}  # since the last plan
        self._num_preempted = 0  # since the last plan
        self._named: dict[type, tuple[tuple[str, ...], Longs]] = {}  # the last in plans, and in commits

    def take(self, events: Iterable[Event]) -> None:
        """What happened next."""
        times = list[float]()
        for event in events:
            times.append(event.at)
            reads = _READS.get(type(event))
            if reads is not None:
                reads(self, event)
        if times:  # the earliest is the first one, or one that an earlier recorder handed over
            began, ended, facts = min(times), max(times), self.facts
            facts.began = began if math.isnan(facts.began) else min(facts.began, began)
            facts.ended = ended if math.isnan(facts.ended) else max(facts.ended, ended)

    def settled(self) -> Facts:
        """The steps that are over, up to the first that is not, and what was said of blocks; each only once.

        Nothing that is said later changes them. The requests are those of `facts`.
        """
        facts = self.facts
        count = next((k for k, s in enumerate(facts.steps) if s.status == "in flight"), len(facts.steps))
        over = replace(facts, steps=facts.steps[:count], blocks=facts.blocks)
        facts.steps, facts.blocks = facts.steps[count:], []
        return over

    def _number(self, request_id: str) -> int:
        if request_id not in self._numbers:  # its arrival was not recorded
            self.facts.began_late = True
            self._add(request_id)
        return self._numbers[request_id]

    def _add(self, request_id: str) -> None:
        self._named.clear()  # the id may have meant another request before
        self._numbers[request_id] = len(self.facts.requests)
        self.facts.requests.append(RequestFacts(request_id))

    def _request(self, request_id: str) -> RequestFacts:
        return self.facts.requests[self._number(request_id)]

    def _numbers_of(self, request_ids: Sequence[str]) -> Longs:
        numbers = self._numbers
        try:
            return np.array([numbers[request_id] for request_id in request_ids], np.int64)
        except KeyError:
            return np.array([self._number(request_id) for request_id in request_ids], np.int64)

    def _numbers_in(self, event: StepPlanned | StepCommitted) -> Longs:
        """From step to step the names are mostly the same object, and so are the numbers."""
        names, numbers = self._named.get(type(event), ((), NONE))
        if names is not event.request_ids:
            numbers = self._numbers_of(event.request_ids)
            self._named[type(event)] = event.request_ids, numbers
        return numbers

    def _started(self, event: EngineStarted) -> None:
        self.facts.config = dict(event.config)

    def _arrived(self, event: RequestArrived) -> None:
        self._add(event.request_id)
        request = self._request(event.request_id)
        request.prompt_token_ids, request.cache_root = event.prompt_token_ids, event.cache_root
        request.adapter = event.adapter
        request.max_tokens, request.priority, request.arrived = event.max_tokens, event.priority, event.at
        request.aside = event.aside

    def _readied(self, event: RequestReady) -> None:
        self._request(event.request_id).ready = event.at

    def _preempted(self, event: RequestPreempted) -> None:
        self._num_preempted += 1
        self._request(event.request_id).preemptions += 1
        self._lose(event.request_id)

    def _request_admitted(self, event: RequestAdmitted) -> None:
        self._admitted[self._number(event.request_id)] = event
        if not event.resumed:
            request = self._request(event.request_id)
            request.ran_before = not self._began  # until that step turns out to be the one
            request.queried, request.cached = event.num_queried, event.num_cached_tokens
            request.forgone, request.scheduled = event.num_forgone, event.at

    def _blocks_changed(self, event: BlocksChanged) -> None:
        self.facts.blocks.append(event)

    def _planned(self, event: StepPlanned) -> None:
        for addition in event.plan.added:
            request = self._request(addition.request_id)
            asked = addition.params.logprobs or 0  # the vocabulary is for the output alone
            request.logprobs = max(asked, 0) if addition.params.wants_logprobs else NO_LOGPROBS
            if not len(request.prompt_token_ids):
                request.prompt_token_ids = addition.token_ids[: addition.num_prompt_tokens]
        index = event.plan.index  # an admission handed over by an earlier recorder belongs to an earlier step
        admitted: Mapping[int, RequestAdmitted] = _NOBODY
        if self._admitted:
            admitted = {number: e for number, e in self._admitted.items() if e.step == index}
            self._admitted = {}
        for number, admission in admitted.items():
            self.facts.requests[number].ran_before &= admission.resumed
        step = StepFacts(event, self._numbers_in(event), admitted, self._num_preempted)
        self._num_preempted, self._began = 0, True
        self.facts.steps.append(step)
        self._open[index] = step

    def _committed(self, event: StepCommitted) -> None:
        step = self._open.pop(event.result.index, None)
        if step is None:  # its plan was let go
            self.facts.began_late = True
            return
        step.committed = event
        step.takers = self._numbers_in(event)
        if event.followed:
            step.followers = self._numbers_of([each.request_id for each in event.followed])

    def _failed(self, event: StepFailed) -> None:
        """The steps launched after a failed one go with it."""
        for index in [index for index in self._open if index >= event.index]:
            self._open.pop(index).failed = True

    def _finished(self, event: RequestFinished) -> None:
        request = self._request(event.request_id)
        request.finished, request.finish_reason = event.at, event.reason
        request.stop_reason = None if event.stop_reason is None else str(event.stop_reason)
        request.preemptions, request.num_output = event.num_preemptions, event.num_output_tokens
        self._lose(event.request_id)

    def _lose(self, request_id: str) -> None:
        number = self._number(request_id)
        for step in self._open.values():
            step.lost |= {number}


# By its class: of many thousand events, each finds its reader at once.
_READS: dict[type[Event], Callable[[Reader, Any], None]] = {
    EngineStarted: Reader._started,
    RequestArrived: Reader._arrived,
    RequestReady: Reader._readied,
    RequestAdmitted: Reader._request_admitted,
    RequestPreempted: Reader._preempted,
    BlocksChanged: Reader._blocks_changed,
    StepPlanned: Reader._planned,
    StepCommitted: Reader._committed,
    StepFailed: Reader._failed,
    RequestFinished: Reader._finished,
}
