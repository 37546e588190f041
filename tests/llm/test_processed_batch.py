"""Whoever applies removed, added and moved in this order knows who sits where, whatever changed."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.engine.plan import Addition
from workbench.logits_processors import BatchUpdate, MoveDirectionality, update_rows
from workbench.params import SamplingParams
from workbench.runtime.processed_batch import ProcessedBatch

ROWS, LENGTH = 8, 40
PARAMS = SamplingParams()


def request(name: int, row: int) -> Addition:
    ids = np.full(3, name, np.int32)
    return Addition(row, str(name), ids, 2, (), PARAMS, 0, ())


# Each step: the batch rows that sample, in any order, and those whose requests have been replaced before.
steps = st.lists(
    st.tuples(st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1), st.sets(st.integers(0, ROWS - 1))),
    min_size=1,
    max_size=12,
)


@given(steps)
@settings(deadline=None, max_examples=200)
def test_a_picture_kept_by_updates_is_the_batch(plan: list[tuple[list[int], set[int]]]) -> None:
    batch, names = ProcessedBatch(), iter(range(1, 10_000))
    tokens = torch.zeros((ROWS, LENGTH), dtype=torch.int32)
    holders = {row: request(next(names), row) for row in range(ROWS)}
    lengths = dict.fromkeys(range(ROWS), 3)
    picture: dict[int, tuple[list[int], list[int]]] = {}
    before: list[Addition] = []
    for rows, replaced in plan:
        for row in replaced:
            holders[row], lengths[row] = request(next(names), row), 3
        asked = [holders[row] for row in rows]
        for row in rows:
            tokens[row, lengths[row] - 1] = lengths[row]
        where = np.array(rows), np.array([lengths[row] for row in rows])
        update = batch.follow(asked, *where, tokens)
        assert (update is None) == ([*map(id, before)] == [*map(id, asked)])
        if update is not None:
            _check(update, len(before))
        update_rows(picture, update, lambda added: (added.prompt_tok_ids, added.output_tok_ids))
        assert sorted(picture) == list(range(len(rows)))
        for place, row in enumerate(rows):
            name = int(holders[row].request_id)
            grown = list(range(4, lengths[row] + 1))
            assert picture[place] == ([name, name], [name, *grown])
            lengths[row] += 1
        before = asked


def _check(update: BatchUpdate, size_before: int) -> None:
    """Nobody is overwritten: a row that is entered was free, or has been left."""
    entered = [added.index for added in update.added]
    assert not set(entered) & set(update.removed)
    assert all(row < size_before for row in update.removed)
    assert len(set(entered)) == len(entered)
    for first, second, direction in update.moved:
        assert first != second
        assert isinstance(direction, MoveDirectionality)
