"""Proposes what a drafter in the runner found: it came with the result of the step before. Knows no model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints
from workbench.engine.result import Proposed
from workbench.speculate.drafter import Ask

NOTHING: Ints = np.empty(0, np.int32)


class Held(NamedTuple):
    """Drafts of a row."""

    length: int  # tokens they come behind
    token_ids: Ints


class Relay:
    """The drafts that wait for their step, by batch row."""

    def __init__(self) -> None:
        self._held: dict[int, Held] = {}

    def enter(self, row: int, token_ids: Ints, root: bytes) -> None:
        self._held.pop(row, None)

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        self._held.pop(row, None)

    def hear(self, proposed: Proposed | None) -> None:
        """A step's result is there: earlier drafts are none any more."""
        self._held.clear()
        if proposed is not None:
            rows, lengths, counts, token_ids = proposed
            parts = np.split(token_ids, np.cumsum(counts)[:-1])
            for row, length, part in zip(rows.tolist(), lengths.tolist(), parts, strict=True):
                self._held[row] = Held(length, part)

    def propose(self, ask: Ask) -> Proposals:
        columns = zip(ask.rows.tolist(), ask.lengths.tolist(), ask.most.tolist(), strict=True)
        found = [self._of(row, length)[:most] for row, length, most in columns]
        return Proposals(np.array([len(drafts) for drafts in found], np.int64), np.concatenate(found))

    def _of(self, row: int, length: int) -> Ints:
        held = self._held.get(row)
        return held.token_ids if held is not None and held.length == length else NOTHING
