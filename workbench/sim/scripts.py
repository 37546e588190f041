"""What a recording says of each request, and the request that will be told the same. Plays nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.engine.events import Event, RequestArrived, RequestFinished, StepCommitted, StepPlanned
from workbench.engine.request import Request, StopCheck, Times
from workbench.engine.scheduler import Scheduler
from workbench.params import SamplingParams
from workbench.sim.redrafting import drafts_of


class Recorded:
    """What a request waited for, ready when the recording says so."""

    def __init__(self, failure: str | None) -> None:
        self.ready = False
        self.failure = failure

    def wait(self, seconds: float) -> None:
        """Time is the recording's."""


@dataclass(slots=True)
class Script:
    """One request as it was recorded."""

    arrived: RequestArrived
    params: SamplingParams | None = None  # None: it never ran
    seed: int = 0
    eos_token_ids: tuple[int, ...] = ()
    score_from: int = 0
    token_ids: list[int] = field(default_factory=list)  # generated
    follows: dict[int, int] = field(default_factory=dict)  # place -> tokens from there on that nobody sampled
    drafts: dict[int, list[int]] = field(default_factory=dict)  # length -> what was drafted behind it
    finished: RequestFinished | None = None

    def request(self, scheduler: Scheduler, now: float, adapter: int | None = None) -> Request:
        """It, to be added to a scheduler; `adapter`: number of its own, None for the base model."""
        arrived = self.arrived
        # Nobody reads logprobs here, and the recorded ones are not handed out again.
        params = dataclasses.replace(self.params or SamplingParams(), logprobs=None, logprob_token_ids=None)
        request = Request(
            request_id=arrived.request_id,
            prompt_token_ids=np.asarray(arrived.prompt_token_ids, np.int32),
            params=params,
            max_length=len(arrived.prompt_token_ids) + arrived.max_tokens,
            seed=self.seed,
            eos_token_ids=self.eos_token_ids,
            times=Times(now),
            tables=scheduler.cache.open(arrived.cache_root),
            priority=arrived.priority,
            stop_check=self._stop_check(),
            need=Recorded(self._lacked()) if arrived.aside else None,
            adapter=adapter,
        )
        if self.score_from:
            request.score_prompt(self.score_from)
        return request

    def _stop_check(self) -> StopCheck | None:
        """A stop string, which was found in text, ends it after as many tokens as it did then."""
        end = self.finished
        if end is None or end.reason != "stop" or not isinstance(end.stop_reason, str):
            return None
        found, most = end.stop_reason, end.num_output_tokens
        return lambda token_ids: found if len(token_ids) >= most else None

    def _lacked(self) -> str | None:
        """Why what it waited for could not be had; None: it could."""
        end = self.finished
        if self.params is not None or end is None or end.reason != "error":
            return None
        return None if end.stop_reason is None else str(end.stop_reason)

    def failure_at(self, place: int) -> str | None:
        """Why its token number `place` could not be sampled then; None: it could."""
        end = self.finished
        if end is None or end.reason != "error" or not isinstance(end.stop_reason, str):
            return None
        return end.stop_reason if place >= end.num_output_tokens else None

    def token_at(self, place: int) -> int:
        """Its token number `place`; one that stops nothing where it had not come so far."""
        if place < len(self.token_ids):
            return self.token_ids[place]
        stops = {*self.eos_token_ids, *((self.params and self.params.stop_token_ids) or ())}
        return next(token_id for token_id in range(len(stops) + 1) if token_id not in stops)


def scripts_of(events: Sequence[Event]) -> list[Script]:
    """One for each arrival, in order."""
    scripts: list[Script] = []
    latest: dict[str, Script] = {}  # an id used again is another request
    for event in events:
        match event:
            case RequestArrived():
                scripts.append(Script(event))
                latest[event.request_id] = scripts[-1]
            case StepPlanned():
                for added in event.plan.added:
                    script = latest[added.request_id]
                    script.params, script.seed = added.params, added.seed
                    script.score_from = added.score_from
                    script.eos_token_ids = tuple(added.eos_token_ids)
                for name, length, drafts in drafts_of(event):
                    latest[name].drafts[length] = drafts
            case StepCommitted():
                for name, token_id in zip(event.request_ids, event.token_ids.tolist(), strict=True):
                    latest[name].token_ids.append(token_id)
                for name, token_ids in event.followed:
                    latest[name].follows[len(latest[name].token_ids)] = len(token_ids)
                    latest[name].token_ids += token_ids.tolist()
            case RequestFinished():
                latest[event.request_id].finished = event
            case _:
                pass
    return scripts
