"""Tokens that are sent when somebody looks at them are those that would have been written as they came."""

from __future__ import annotations

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

ROWS, WIDTH = 3, 24
NONE = np.empty(0, np.int32)
TOKEN = st.integers(1, 99)
LOOKS = st.just([]) | st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1)  # rows


def ints(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.int32)


@st.composite
def steps(draw: st.DrawFn) -> Seen:
    """One that samples for some rows, behind drafts or not; whoever enters, and what follows by itself."""
    rows = draw(st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1))
    starts = draw(st.lists(st.integers(0, 15), min_size=len(rows), max_size=len(rows)))
    samples = draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    many = draw(st.integers(0, 3)) if samples[0] else 0
    drafts = Drafts(ints([0]), ints([many]), ints([draw(TOKEN) for _ in range(many)])) if many else None
    counts = [1 + many, *[1] * (len(rows) - 1)]
    added, forced = [], []
    if draw(st.booleans()):
        ids = ints(draw(st.lists(TOKEN, min_size=1, max_size=9)))
        row = draw(st.integers(0, ROWS - 1))
        added = [Addition(row, "r", ids, len(ids), (NONE,), SamplingParams(), 0, ())]
    if draw(st.booleans()):
        ids = ints(draw(st.lists(TOKEN, min_size=1, max_size=9)))
        forced = [Forced(draw(st.integers(0, ROWS - 1)), draw(st.integers(0, WIDTH - 1)), ids)]
    columns = ints(rows), ints(starts), ints(counts), np.array(samples)
    grown = (Growth(NONE, NONE, NONE),)
    plan = StepPlan(0, 0, *columns, NONE, tuple(added), grown, drafts=drafts)
    sampled = ints([draw(TOKEN) for _ in range(sum(samples) + many)])
    return Seen(plan, sampled, None, tuple(forced), frozenset(), None)


def plain(seen: Seen) -> bool:
    return not (seen.plan.added or seen.plan.drafts or seen.forced)


@given(st.lists(st.tuples(steps(), LOOKS), max_size=8))
def test_it_is_as_if_each_had_been_written_when_it_came(history: list[tuple[Seen, list[int]]]) -> None:
    layout = (Layout(1, 1, 4, 8, None),)
    batch, expected = (Batch(ROWS, WIDTH, layout, torch.device("cpu")) for _ in range(2))
    tokens, together = HostTokens(ROWS, WIDTH), []
    for seen, looked_at in history:
        expected.apply(seen.plan)
        rows, positions, _ = seen.plan.yields
        sampled = torch.from_numpy(seen.token_ids)
        expected.append(rows.astype(np.int64), positions.astype(np.int64), sampled)
        expected.follow(seen.forced)
        if together and not (plain(seen) and plain(together[-1])):
            tokens.follow(together)
            together = []
        together.append(seen)
        if looked_at:
            tokens.follow(together)
            together = []
            some = np.array(looked_at)
            tokens.send(batch, some, np.full(len(some), WIDTH))
            assert batch.tokens[some].tolist() == expected.tokens[some].tolist()
