"""A plan in the making: what has been decided of it so far. Decides nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.engine.books import NOBODY
from workbench.engine.drafting import Proposals
from workbench.engine.plan import Drafts, Growth
from workbench.engine.request import Request

NO_GROWTH = Growth(NOBODY, NOBODY, NOBODY)


@dataclass(slots=True)
class Outline:
    """Lives only inside `Planner.plan`."""

    budget: int
    grown: list[list[tuple[int, int, int]]]  # per group: (row, place in its table, block)
    crossed: Growth | None = None  # all the growth there is, where `_cross` served everybody
    registered: list[bytes] = field(default_factory=list)
    preempted: set[int] = field(default_factory=set)  # places
    names: list[str] = field(default_factory=list)  # ids of the preempted
    recomputed: int = 0
    proposals: Proposals | None = None  # drafts that are verified; None: none are

    def preempt(self, place: int, request: Request) -> None:
        """A request that had its share of this plan gives it back."""
        self.preempted.add(place)
        self.names.append(request.request_id)
        for grown in self.grown:
            grown[:] = [growth for growth in grown if growth[0] != request.row]

    @property
    def num_drafts(self) -> int:
        """Tokens that are verified."""
        return 0 if self.proposals is None else len(self.proposals.token_ids)

    @property
    def growth(self) -> tuple[Growth, ...]:
        """Of each group."""
        if self.crossed is not None:
            return (self.crossed,)
        return tuple([_growth(group) for group in self.grown])

    def drafts(self, part: npt.NDArray[np.integer[Any]] | None) -> Drafts | None:
        """What is verified; `part`: the places that are in the plan, None: all."""
        if self.proposals is None:
            return None
        counts, token_ids = self.proposals
        places = counts.nonzero()[0]
        lines = places if part is None else np.searchsorted(part, places)
        return Drafts(lines.astype(np.int32), counts[places].astype(np.int32), token_ids)


def _growth(grown: list[tuple[int, int, int]]) -> Growth:
    if not grown:
        return NO_GROWTH
    rows, places, blocks = np.array(grown, np.int32).T
    return Growth(rows, places, blocks)
