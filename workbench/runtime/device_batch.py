"""The batch as it lives on the device: tokens, block tables and sampling options, a line for each batch row.

Only differences travel: what enters is copied when it enters, what grows with the step's packed array, and a
sampled token is written where the next step reads it, without the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.cache.pool import NULL_BLOCK
from workbench.engine.plan import Addition, Growth, StepPlan
from workbench.engine.result import Forced
from workbench.kernels.attention.reference import Layout
from workbench.kernels.sample.reference import Options
from workbench.runtime.adjusting import Adjuster
from workbench.runtime.pinned import Pinned
from workbench.runtime.sampler import is_adjusted

SHARED_BLOCKS = 8  # so long a common prefix has to be to be read apart
SHARING_ROWS = 8  # and so many requests have to share it
STRIDE = 16  # numbers; of lines of tokens and tables


def line_widths(max_length: int, block_size: int) -> tuple[int, int]:
    """Numbers of a line of tokens, and of a line of a block table.

    Whole multiples, or kernels, which know what divides a stride, would be compiled anew for other lengths.
    """
    most_blocks = -(-max_length // block_size)
    return -(-max_length // STRIDE) * STRIDE, -(-most_blocks // STRIDE) * STRIDE


class DeviceBatch:
    """What a plan's differences are applied to."""

    def __init__(
        self, max_rows: int, max_length: int, layouts: Sequence[Layout], vocab: int, pinned: Pinned
    ) -> None:
        """`layouts`: of the KV groups, which share a block size. `pinned`: the way to the device."""
        self.layouts = tuple(layouts)
        self.block_size = layouts[0].block_size
        self.device = device = pinned.device
        self.pinned = pinned
        width, max_blocks = line_widths(max_length, self.block_size)
        self.tokens = torch.zeros((max_rows, width), dtype=torch.int32, device=device)
        self.tables = tuple(
            torch.full((max_rows, max_blocks), NULL_BLOCK, dtype=torch.int32, device=device) for _ in layouts
        )
        self._floats = torch.zeros((3, max_rows), device=device)  # temperature, top_p, min_p
        self._longs = torch.zeros((2, max_rows), dtype=torch.int64, device=device)  # top_k, seed
        self.adjuster = Adjuster(max_rows, vocab, pinned)
        self.additions: dict[int, Addition] = {}  # by row
        self.special: set[int] = set()  # rows that want more than a token drawn from their logits
        self._first_blocks: dict[int, np.ndarray] = {}  # of the first group, by row: where a prefix is shared
        self._shared: int | None = None  # of the present members; None: not counted yet

    def clear(self) -> None:
        """Forget all members. Asks nothing of the device, which may have failed."""
        self.additions.clear()
        self.adjuster.clear()
        self.special.clear()
        self._first_blocks.clear()
        self._shared = None

    def apply(self, plan: StepPlan) -> None:
        """Members leave and enter. Drafts and growth come with the packed array, or by `grow`."""
        for row in plan.removed.tolist():
            del self.additions[row]
            del self._first_blocks[row]
            self.special.discard(row)
        if len(plan.removed):
            self.adjuster.leave(plan.removed.tolist())
        if plan.added:
            self._enter(plan.added)
        if plan.added or len(plan.removed):
            self._shared = None

    def _enter(self, added: Sequence[Addition]) -> None:
        for addition in added:
            self.additions[addition.row] = addition
            self._first_blocks[addition.row] = addition.blocks[0]
            if addition.params.wants_logprobs or is_adjusted(addition.params):
                self.special.add(addition.row)
        rows = np.array([addition.row for addition in added], np.int64)
        self._scatter(self.tokens, rows, [addition.token_ids for addition in added])
        for group, table in enumerate(self.tables):
            self._scatter(table, rows, [addition.blocks[group] for addition in added])
        params = [addition.params for addition in added]
        floats = np.array(
            [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]],
            np.float32,
        )
        longs = np.array([[p.top_k for p in params], [addition.seed for addition in added]], np.int64)
        lines = self.pinned.upload(rows)
        self._floats.index_copy_(1, lines, self.pinned.upload(floats))
        self._longs.index_copy_(1, lines, self.pinned.upload(longs))
        self.adjuster.enter(added, self.tokens)

    def _scatter(self, table: Tensor, rows: np.ndarray, lines: list[np.ndarray]) -> None:
        """table[row, : len(line)] = line, for all of them in one copy."""
        counts = np.array([len(line) for line in lines])
        total = int(counts.sum())
        if not total:
            return
        first = rows * table.shape[1] - (np.cumsum(counts) - counts)
        places = np.repeat(first, counts) + np.arange(total)
        values = self.pinned.upload(np.concatenate(lines))
        table.view(-1).index_copy_(0, self.pinned.upload(places), values)

    def grow(self, grown: Sequence[Growth]) -> None:
        """Growth that had no room in the packed array."""
        for table, growth in zip(self.tables, grown, strict=True):
            # Copies, for observers hold the plan's own and torch asks for memory that may be written to.
            rows, places, blocks = (self.pinned.upload(column.copy()) for column in growth)
            table.index_put_((rows.long(), places.long()), blocks)

    def follow(self, forced: Sequence[Forced]) -> None:
        """Tokens that nobody has to sample, as far as they have room."""
        for row, start, token_ids in forced:
            room = self.tokens[row, start : start + len(token_ids)]
            room.copy_(self.pinned.upload(token_ids[: len(room)]))

    def options(self, rows: Tensor, lengths: Tensor) -> Options:
        """The sampling options of some rows [m] int32, as the kernels take them."""
        floats, longs = self._floats.index_select(1, rows), self._longs.index_select(1, rows)
        return Options(floats[0], longs[0], floats[1], floats[2], longs[1], lengths)

    @property
    def can_share(self) -> bool:
        """Whether a common beginning is ever read apart: where every layer sees all of it."""
        return len(self.layouts) == 1 and self.layouts[0].window is None

    def shared_blocks(self, plan: StepPlan) -> int:
        """Leading blocks all rows of a plan of decodes have in common; 0 where it is not worth the while."""
        if len(plan.rows) < SHARING_ROWS or not self.can_share:
            return 0
        if len(plan.rows) != len(self._first_blocks):
            return 0  # some wait for their turn; the common beginning of the others is theirs alone
        if self._shared is None:
            self._shared = _common(list(self._first_blocks.values()))
        shared = min(self._shared, int(plan.starts.min()) // self.block_size)
        return shared if shared >= SHARED_BLOCKS else 0


def _common(tables: Sequence[np.ndarray]) -> int:
    """Leading blocks that all tables begin with."""
    length = min(map(len, tables))
    first = tables[0]
    for table in tables[1:]:
        if length == 0 or first[0] != table[0]:
            return 0
        differs = (first[:length] != table[:length]).nonzero()[0]
        if len(differs):
            length = int(differs[0])
    return length
