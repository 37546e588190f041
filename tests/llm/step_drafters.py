"""A drafter in the runner that uses all there is: hidden states, a cache of its own, the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workbench.engine.result import Proposed
from workbench.runtime.step_drafter import Seen


class Recalling:
    """Where the model was in a state most like its last one, there it goes on as it did then.

    Its cache holds the hidden state of every token, and the token, in the blocks of the request.
    """

    wants_hidden = True

    def __init__(self, num_blocks: int, block_size: int, hidden: int, rows: int, length: int) -> None:
        self.states = torch.full((1 + num_blocks, block_size, hidden), torch.nan)
        self.token_ids = torch.full((1 + num_blocks, block_size), -1)
        self.size = block_size
        self.tables = np.zeros((rows, -(-length // block_size)), np.int64)
        self.known = torch.zeros(rows, length, dtype=torch.int64)
        self.read: dict[tuple[int, ...], Tensor] = {}  # what the cache held for whom
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def draft(self, seen: Seen) -> Proposed | None:
        plan = seen.plan
        self._follow(seen)
        assert seen.hidden is not None
        assert len(seen.hidden) == plan.num_tokens
        self._store(seen, seen.hidden)
        if plan.asks is None:
            return None
        lines = plan.asks.lines
        lengths = seen.lengths[lines]
        found = [
            self._recalled(int(row), int(length), int(most))
            for row, length, most in zip(plan.rows[lines], lengths, plan.asks.most, strict=True)
        ]
        counts = np.array([len(each) for each in found], np.int32)
        return Proposed(plan.rows[lines], lengths.astype(np.int32), counts, np.concatenate(found))

    def _follow(self, seen: Seen) -> None:
        plan = seen.plan
        for added in plan.added:
            self.known[added.row, : len(added.token_ids)] = torch.tensor(added.token_ids)
            self.tables[added.row, : len(added.blocks[0])] = added.blocks[0]
        self.tables[plan.grown[0].rows, plan.grown[0].places] = plan.grown[0].blocks
        rows, positions, _ = plan.yields
        if plan.drafts is not None:
            drafted = len(rows) - plan.num_drafts
            self.known[rows[drafted:], positions[drafted:] - 1] = torch.tensor(plan.drafts.token_ids).long()

    def _store(self, seen: Seen, hidden: Tensor) -> None:
        plan, begin = seen.plan, 0
        for row, start, count in zip(plan.rows.tolist(), plan.starts, plan.counts, strict=True):
            places = np.arange(start, start + count)
            slot = (self.tables[row, places // self.size], places % self.size)
            self.states[slot] = hidden[begin : begin + count].float().cpu()
            self.token_ids[slot] = self.known[row, places]
            begin += count
        rows, positions, _ = plan.yields  # only now: a draft's place is its token's until it was computed
        self.known[rows, positions] = torch.from_numpy(seen.token_ids).long()

    def _recalled(self, row: int, length: int, most: int) -> np.ndarray:
        """All but the newest token are in the cache, whoever computed them."""
        places = np.arange(length - 1)
        slot = (self.tables[row, places // self.size], places % self.size)
        states, token_ids = self.states[slot], self.token_ids[slot]
        assert token_ids.tolist() == self.known[row, : length - 1].tolist()
        self.read[tuple(token_ids.tolist())] = states
        if length < 4:
            return np.empty(0, np.int32)
        alike = int((states[:-1] @ states[-1]).argmax())  # behind it came token alike + 1
        after = [*token_ids.tolist(), int(self.known[row, length - 1])][alike + 2 :]
        return np.array(after[:most], np.int32)
