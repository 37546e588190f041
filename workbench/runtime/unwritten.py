"""Tokens on their way into a batch that few look at: kept on the host until somebody does.

To write them costs the device a pause, step after step, which would be for nothing where nobody drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from workbench.runtime.batch import Batch
from workbench.runtime.step_drafter import Longs, Seen


class Unwritten:
    """Tokens by batch row and position, in the order in which they came: the last one counts."""

    def __init__(self) -> None:
        self.count = 0
        self._rows: list[Longs] = []
        self._positions: list[Longs] = []
        self._token_ids: list[Longs] = []

    def clear(self) -> None:
        self.count = 0
        for column in (self._rows, self._positions, self._token_ids):
            column.clear()

    def follow(self, steps: Sequence[Seen]) -> None:
        """What steps sampled; and what the first brought with it, and is forced to go on with.

        In those behind the first nobody enters, brings drafts or is forced to anything.
        """
        first, plans = steps[0], [seen.plan for seen in steps]
        for added in first.plan.added:
            self._add(added.row, 0, added.token_ids)
        if (drafts := first.plan.drafts) is not None:
            assert len(steps) == 1, "a step that verifies is followed by itself"
            rows, positions, _ = first.plan.yields
            behind = len(rows) - len(drafts.token_ids)
            self._put(rows[behind:], positions[behind:] - 1, drafts.token_ids)
        else:
            samples = np.concatenate([plan.samples for plan in plans])
            rows = np.concatenate([plan.rows for plan in plans])[samples]
            positions = np.concatenate([plan.starts + plan.counts for plan in plans])[samples]
        self._put(rows, positions, np.concatenate([seen.token_ids for seen in steps]))
        for row, start, token_ids in first.forced:
            self._add(row, start, token_ids)

    def _add(self, row: int, start: int, token_ids: np.ndarray) -> None:
        """One row's, side by side."""
        self._put(np.full(len(token_ids), row), np.arange(start, start + len(token_ids)), token_ids)

    def _put(self, rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> None:
        self.count += len(rows)
        self._rows.append(rows)
        self._positions.append(positions)
        self._token_ids.append(token_ids)

    def write(self, batch: Batch) -> None:
        """Into the batch, as far as there is room."""
        if not self.count:
            return
        columns = (self._rows, self._positions, self._token_ids)
        rows, positions, token_ids = (np.concatenate(column).astype(np.int64) for column in columns)
        self.clear()
        width = batch.tokens.shape[1]
        inside = positions < width
        rows, positions, token_ids = rows[inside], positions[inside], token_ids[inside]
        # Of several for one place the last: first of all when looked at from the end.
        _, last = np.unique((rows * width + positions)[::-1], return_index=True)
        kept = len(rows) - 1 - last
        batch.append(rows[kept], positions[kept], torch.from_numpy(token_ids[kept]).to(batch.device))
