"""Drafters of every quality, for tests: those that know what comes, that guess, and that lead astray."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from tests.llm import tiny
from workbench import LLM
from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints
from workbench.speculate.config import Room
from workbench.speculate.drafter import Ask
from workbench.speculate.pace import Pace
from workbench.speculate.speculator import Speculator

MOST = 4
DRAFTERS = ("accurate", "useless", "adversarial")


class TestDrafter:
    """Has seen the whole sequences before: says what comes, something else, or what comes up to somewhere."""

    __test__ = False

    def __init__(self, kind: str, sequences: Sequence[Sequence[int]]) -> None:
        self.kind = kind
        self.sequences = [list(sequence) for sequence in sequences]
        self.dice = random.Random(2)
        self.entered: dict[int, int] = {}  # row -> tokens its request came with
        self.left = 0

    def enter(self, row: int, token_ids: Ints, root: bytes) -> None:
        self.entered[row] = len(token_ids)

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        assert len(token_ids) >= self.entered.pop(row) >= num_prompt_tokens
        self.left += 1

    def propose(self, ask: Ask) -> Proposals:
        found = []
        for row, length, most in zip(ask.rows.tolist(), ask.lengths.tolist(), ask.most.tolist(), strict=True):
            assert length >= self.entered[row], "a row's tokens only grow"
            found.append(self._drafts(ask.tokens[row, :length].tolist(), most))
        ids = [token for drafts in found for token in drafts]
        return Proposals(np.array([len(drafts) for drafts in found]), np.array(ids, np.int32))

    def _drafts(self, known: list[int], most: int) -> list[int]:
        after = [s[len(known) :] for s in self.sequences if s[: len(known)] == known and len(s) > len(known)]
        right = (after[0] if after else [])[:most]
        guessed = [self.dice.randrange(tiny.VOCAB) for _ in range(most)]
        if self.kind == "accurate":
            return right
        if self.kind == "useless":
            return guessed
        return right[: most - 1] + guessed[len(right[: most - 1]) :]


def draft_by(llm: LLM, drafter: TestDrafter, most: int = MOST, pace: Pace | None = None) -> TestDrafter:
    """The engine's requests are drafted by `drafter`, whatever comes of it, or as `pace` says."""
    speculator = Speculator(drafter, Room(most, 256), pace)
    scheduler = llm._engine.scheduler
    scheduler._speculation = scheduler._planner._speculation = speculator
    return drafter
