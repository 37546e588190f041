"""A plan between launch and commit, and what the commit did. Plain data about requests; decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from workbench.engine.plan import Ints, StepPlan
from workbench.engine.request import Request
from workbench.engine.result import Scores
from workbench.engine.running import Longs


@dataclass(slots=True)
class Flight:
    """A plan on its way: made, and not committed yet."""

    plan: StepPlan
    rows: Ints  # every running request's row when it was planned, in running order
    requests: list[Request]  # and the requests
    places: Longs | None  # of those that sample, in that order; None: all
    version: int  # of the membership, then
    registered: list[bytes]  # keys made findable on the strength of this plan
    preempted: tuple[str, ...]  # ids of the requests it preempted
    dropped: set[Request] = field(default_factory=set)  # ended or preempted since
    overshoot: int = 0  # tokens computed for them

    def sampling(self) -> list[Request]:
        if self.places is None:
            return self.requests
        return [self.requests[place] for place in self.places]

    def keep_scores(self, scores: Sequence[Scores]) -> list[Request]:
        """Requests take the logprobs of their prompts, () from a runner without a model; who has them all."""
        scoring, complete = self.plan.scoring, []
        if scoring is None:
            return []
        held = dict(zip(self.rows.tolist(), self.requests, strict=True))
        rows = self.plan.rows[scoring.lines].tolist()
        for number, (row, end) in enumerate(zip(rows, scoring.ends.tolist(), strict=True)):
            request = held[row]
            if request not in self.dropped:
                request.num_scored = end
                request.scores += scores[number : number + 1]
                if not request.scoring:
                    complete.append(request)
        return complete

    def drop(self, request: Request) -> int:
        """The request, which still holds its row, is gone; the tokens this plan computes for it."""
        self.dropped.add(request)
        mine = self.plan.rows == request.row
        start, tokens = int(self.plan.starts[mine].sum()), int(self.plan.counts[mine].sum())
        self.overshoot += tokens
        request.num_overshoot += tokens
        # What was recomputed in vain counts once, as overshoot.
        request.num_recomputed -= max(0, min(start + tokens, request.num_reached) - start)
        return tokens

    @property
    def names(self) -> dict[int, str]:
        """Batch row -> id of the request that held it when it was planned."""
        return {row: r.request_id for row, r in zip(self.rows.tolist(), self.requests, strict=True)}


class Commit(NamedTuple):
    """What a result, or a failure, did."""

    flight: Flight | None  # None: there was no step, and nobody took a token
    requests: Sequence[Request]  # who took a token
    streamed: Sequence[Request]  # those of them somebody listens to
    finished: Sequence[Request]
