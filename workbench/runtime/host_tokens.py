"""A batch's tokens on the host, which reach the device where somebody looks at them.

To write each as it comes costs the device a pause, step after step, which is for nothing where nobody drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from workbench.engine.plan import within
from workbench.runtime.batch import Batch
from workbench.runtime.step_drafter import Longs, Seen


class HostTokens:
    """Tokens by batch row, and how many of each row's have been sent. What a request has does not change."""

    def __init__(self, max_rows: int, width: int) -> None:
        # The system hands out zero pages when they are first touched: lengths nobody has take no memory.
        self._ids = np.zeros((max_rows, width), np.int32)
        self._sent: Longs = np.zeros(max_rows, np.int64)

    def follow(self, steps: Sequence[Seen]) -> None:
        """What steps sampled; and what the first brought with it, and is forced to go on with.

        In those behind the first nobody enters, brings drafts or is forced to anything.
        """
        first, plans = steps[0], [seen.plan for seen in steps]
        for added in first.plan.added:
            self._ids[added.row, : len(added.token_ids)] = added.token_ids
            self._sent[added.row] = 0
        if first.plan.drafts is not None:
            assert len(steps) == 1, "a step that verifies is followed by itself"
            rows, positions, _ = first.plan.yields  # where a draft stands, it is what was sampled there
        else:
            samples = np.concatenate([plan.samples for plan in plans])
            rows = np.concatenate([plan.rows for plan in plans])[samples]
            positions = np.concatenate([plan.starts + plan.counts for plan in plans])[samples]
        self._ids[rows, positions] = np.concatenate([seen.token_ids for seen in steps])
        for row, start, token_ids in first.forced:
            room = self._ids[row, start : start + len(token_ids)]
            room[:] = token_ids[: len(room)]

    def send(self, batch: Batch, rows: Longs, lengths: Longs) -> None:
        """To the device, of each of the rows [n] its first tokens [n] that are not there yet."""
        first = self._sent[rows]
        counts = np.maximum(lengths - first, 0)
        self._sent[rows] = np.maximum(first, lengths)
        lines = rows.repeat(counts)
        positions = first.repeat(counts) + within(counts)
        token_ids = torch.from_numpy(self._ids[lines, positions]).to(batch.device)
        batch.append(lines, positions, token_ids)
