"""The seam to whoever drafts: what the planner asks for, and what is heard of it. Knows no drafter.

Drafts are tokens that a request wants computed beyond what it has, in the hope that the model agrees: they
share a step's budget and blocks with everybody else's tokens, and never take either from anybody.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from workbench.cache.manager import CacheManager
from workbench.engine.plan import Asks, Ints, StepPlan, within
from workbench.engine.request import Request
from workbench.engine.result import StepResult
from workbench.engine.running import Longs, Running


class Proposals(NamedTuple):
    """Drafts for the requests of the running order."""

    counts: Longs  # [n]; of each, 0: none
    token_ids: Ints  # [counts.sum()]; one request's after the other's

    def clipped(self, most: Longs) -> Proposals:
        """Of each request's drafts no more than the first `most` [n]."""
        if (self.counts <= most).all():
            return self
        kept = within(self.counts.astype(np.int32)) < most.repeat(self.counts)
        return Proposals(self.counts.clip(max=most), self.token_ids[kept])


def affordable(
    proposals: Proposals, counts: Longs, budget: int, running: Running, cache: CacheManager
) -> Proposals | None:
    """Drafts within what `counts` [n] leave of the budget, where there are blocks for them all.

    None: there are none. Whoever wants more than its last token, or was not given it, gets no drafts.
    """
    alone = counts == 1
    if not alone.all():
        proposals = proposals.clipped(np.where(alone, proposals.counts, 0))
    left = budget - int(counts.sum())
    if len(proposals.token_ids) > left:
        before = np.cumsum(proposals.counts) - proposals.counts
        proposals = proposals.clipped(np.maximum(left - before, 0))
    size = cache.block_size
    beyond = running.computed + counts + proposals.counts - running.capacity
    fresh = int(np.maximum((beyond + (size - 1)) // size, 0).sum()) * len(cache.groups)
    return proposals if len(proposals.token_ids) and fresh <= cache.pool.num_free else None


def proposed(speculation: Speculation, running: Running) -> Proposals | None:
    """Drafts of those who want nothing but the token they sampled last, up to the end they may reach."""
    if not running.count:
        return None
    alone = running.length - running.computed == 1
    return speculation.propose(running, np.where(alone, running.end - running.length - 1, 0))


def asked(
    speculation: Speculation, running: Running, places: Longs | None, part: Longs | None
) -> Asks | None:
    """What a plan that has been entered into the columns asks of a drafter in the runner.

    Args:
        places: of those who sample; None: all do.
        part: of those who are in the plan; None: all are.
    """
    wanted = speculation.asks(running)
    if wanted is None:
        return None
    wanted = np.minimum(np.maximum(running.end - running.length - 1, 0), wanted)
    if places is not None:
        wanted = np.where(np.isin(np.arange(len(wanted)), places), wanted, 0)
    asking = wanted.nonzero()[0]
    lines = asking if part is None else np.searchsorted(part, asking)
    if not len(asking):
        return None
    return Asks(lines.astype(np.int32), wanted[asking].astype(np.int32))


class Speculation(Protocol):
    """Who drafts for an engine, how much, and what became of it."""

    def copy(self) -> Speculation:
        """One that proposes what this one would next, which notices nothing of it."""
        ...

    def enter(self, request: Request) -> None:
        """The request is about to run: its batch row held somebody else's tokens before."""
        ...

    def leave(self, request: Request) -> None:
        """The request has ended, with the tokens that it has now."""
        ...

    def waits(self, running: Running) -> bool:
        """Whether somebody is to draft next: no step is planned before all tokens are known."""
        ...

    def propose(self, running: Running, most: Longs) -> Proposals | None:
        """Drafts behind each request's last token, at most `most` [n]; None: nobody has any.

        All tokens are known: no step is in flight.
        """
        ...

    def asks(self, running: Running) -> Longs | None:
        """[n]; drafts that the runner is to find behind what a step samples; None: none.

        They come with the step's result, and are what `propose` says next.
        """
        ...

    def meanwhile(self, running: Running) -> None:
        """A step is computed and nothing can be planned behind it: time to think about what is to come."""
        ...

    def committed(self, plan: StepPlan, result: StepResult, accepted: Ints | None) -> None:
        """A step is over. `accepted` [s]: of the plan's drafts, those that became output."""
        ...
