"""Tokens that wait on the host are sent when somebody looks at them, all of them and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from workbench.kernels.attention.reference import Layout

from workbench.engine.plan import Addition, Drafts, Growth, StepPlan
from workbench.engine.result import Forced
from workbench.params import SamplingParams
from workbench.runtime.batch import Batch
from workbench.runtime.host_tokens import HostTokens
from workbench.runtime.step_drafter import Seen

ROWS, WIDTH = 3, 64
NONE = np.empty(0, np.int32)
TOKENS = st.lists(st.integers(1, 99), min_size=1, max_size=5)


def ints(numbers: Sequence[int]) -> np.ndarray:
    return np.array(numbers, np.int32)


class History:
    """Requests that come, and grow as steps sample, verify drafts and force tokens; their tokens so far."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.known: dict[int, list[int]] = {}

    def step(self) -> Seen:
        added = [self.enter(row) for row in range(ROWS) if row not in self.known or not self.draw(DIE)]
        rows = [row for row in self.known if self.draw(DIE)]
        heads = [len(self.known[row]) - 1 for row in rows]
        drafts, forced = None, []
        counts, samples = np.ones(len(rows), np.int32), np.array([self.draw(DIE) > 0 for _ in rows], bool)
        if rows and not self.draw(DIE):
            drafts = Drafts(ints([0]), ints([2]), ints([self.draw(st.integers(1, 99)) for _ in range(2)]))
            counts[0], samples[0] = 3, True
        plan = StepPlan(
            0, 0, ints(rows), ints(heads), counts, samples, NONE, tuple(added),
            (Growth(NONE, NONE, NONE),), drafts=drafts,
        )  # fmt: skip
        sampled = [self.draw(st.integers(1, 99)) for _ in plan.yields.rows]
        behind = len(sampled) - plan.num_drafts
        for row, token in zip(plan.rows[plan.samples].tolist(), sampled[:behind], strict=True):
            self.known[row].append(token)
        if drafts is not None:
            accepted = self.draw(st.integers(0, 2))
            self.known[rows[0]] += sampled[behind : behind + accepted]
        elif rows and samples[-1] and not self.draw(DIE):
            forced = [Forced(rows[-1], len(self.known[rows[-1]]), ints(self.draw(TOKENS)))]
            self.known[rows[-1]] += forced[0].token_ids.tolist()
        return Seen(plan, ints(sampled), None, tuple(forced), frozenset(), None)

    def enter(self, row: int) -> Addition:
        self.known[row] = self.draw(TOKENS)
        ids = ints(self.known[row])
        return Addition(row, "r", ids, len(ids), (NONE,), SamplingParams(), 0, ())


DIE = st.integers(0, 2)


def plain(seen: Seen) -> bool:
    return not (seen.plan.added or seen.plan.drafts or seen.forced)


@given(st.data(), st.integers(1, 7))
def test_what_is_sent_is_what_requests_have(data: st.DataObject, count: int) -> None:
    """Whenever somebody looks, at whomever."""
    batch = Batch(ROWS, WIDTH, (Layout(1, 1, 4, 8, None),), torch.device("cpu"))
    tokens, history, together = HostTokens(ROWS, WIDTH), History(data.draw), []
    for _ in range(count):
        seen = history.step()
        if together and not (plain(seen) and plain(together[-1])):
            tokens.follow(together)
            together = []
        together.append(seen)
        looked_at = [row for row in history.known if not data.draw(DIE)]
        if looked_at:
            tokens.follow(together)
            together = []
            lengths = [len(history.known[row]) for row in looked_at]
            tokens.send(batch, np.array(looked_at), np.array(lengths))
            for row in looked_at:
                assert batch.tokens[row, : len(history.known[row])].tolist() == history.known[row]
