"""The batch as it lives beside the device between steps, and one step's inputs cut from it.

A plan carries differences; this is what they are applied to. Knows rows, tokens and block tables; nothing
of models, sampling or the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.cache.pool import NULL_BLOCK
from workbench.engine.plan import Addition, Growth, Ints, StepPlan
from workbench.engine.result import Forced
from workbench.kernels.attention.reference import (
    GEMV_QUERIES,
    Bucket,
    Layout,
    make_bucket,
    make_places,
)

PADDING_WORTH_A_BUCKET = 3072  # padded positions that cost about as much as one more round of calls
SHARING_ROWS = 4  # of one bucket, for which a common prefix is worth calls of its own
SHARED_BLOCKS = 2  # and so long it has to be
MASKED_QUERIES = 512  # queries of one masked bucket: bounds the mask to this many rows

Longs = npt.NDArray[np.int64]


class Inputs(NamedTuple):
    """What the model is run on. The rows of a step are laid out by query count and context length."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    places: tuple[Tensor, ...]  # per KV group [T * 2 * kv_heads] int64; where keys and values are written
    buckets: tuple[tuple[Bucket, ...], ...]  # per KV group
    last: Tensor  # [m + e] int64; where in T is what predicts each token that is sampled, as the plan yields
    rows: Longs  # [m + e]; the batch rows they are sampled for
    lengths: Longs  # [m + e]; the tokens before each
    begins: Longs  # [n]; where in T each of the plan's lines begins
    steady: int  # steps in a row in which the rows with one token were these, each one token further on


class Decoding(NamedTuple):
    """The rows of a step that computed one token each, in the order of the layout."""

    rows: Longs
    starts: Longs


NOBODY = Decoding(np.empty(0, np.int64), np.empty(0, np.int64))


class Batch:
    """Tokens on the device, block tables on the host, a line for each batch row."""

    def __init__(
        self, max_rows: int, max_length: int, layouts: tuple[Layout, ...], device: torch.device
    ) -> None:
        """`layouts`: of the KV groups, which share a block size."""
        self.block_size = block_size = layouts[0].block_size
        self._layouts = layouts
        self.device = device
        self.tokens = torch.zeros((max_rows, max_length), dtype=torch.int32, device=device)
        max_blocks = -(-max_length // block_size)
        self._tables = [np.zeros((max_rows, max_blocks), np.int64) for _ in layouts]
        self.additions: dict[int, Addition] = {}  # by row
        self._decoding = NOBODY
        self._steady = 0

    def clear(self) -> None:
        self.additions.clear()
        self._decoding = NOBODY

    def apply(self, plan: StepPlan) -> None:
        """Bring the batch up to date with a plan."""
        for row in plan.removed.tolist():
            del self.additions[row]
        for added in plan.added:
            self.additions[added.row] = added
            self.enter(added.row, added.blocks)
            self.tokens[added.row, : len(added.token_ids)] = torch.tensor(added.token_ids, device=self.device)
        self.grow(plan.grown)
        if plan.drafts is not None:
            rows, positions, _ = plan.yields
            behind = len(rows) - plan.num_drafts
            token_ids = torch.tensor(plan.drafts.token_ids, device=self.device)
            self.append(rows[behind:].astype(np.int64), positions[behind:].astype(np.int64) - 1, token_ids)

    def enter(self, row: int, blocks: Sequence[Ints]) -> None:
        """The row's block tables, for each KV group, are another request's."""
        if row in self._decoding.rows:
            self._decoding = NOBODY
        for table, held in zip(self._tables, blocks, strict=True):
            table[row, : len(held)] = held
            table[row, len(held) :] = NULL_BLOCK

    def grow(self, grown: Sequence[Growth]) -> None:
        """Blocks appended to block tables, for each KV group."""
        for table, growth in zip(self._tables, grown, strict=True):
            table[growth.rows, growth.places] = growth.blocks

    def blocks_at(self, rows: Longs, places: Longs) -> Longs:
        """Of the first KV group's block tables; the two are broadcast."""
        found: Longs = self._tables[0][rows, places]
        return found

    def append(self, rows: Longs, lengths: Longs, token_ids: Tensor) -> None:
        """Write sampled tokens [m] where the next step reads them."""
        place = (torch.from_numpy(rows).to(self.device), torch.from_numpy(lengths).to(self.device))
        self.tokens.index_put_(place, token_ids.to(torch.int32))

    def follow(self, forced: Sequence[Forced]) -> None:
        """Write tokens that nobody has to sample, as far as they have room."""
        for row, start, token_ids in forced:
            room = self.tokens[row, start : start + len(token_ids)]
            room.copy_(torch.from_numpy(token_ids[: len(room)]))

    def inputs(self, plan: StepPlan) -> Inputs:
        """Lay a plan out flat."""
        ends = plan.starts + plan.counts
        order = np.lexsort((ends, plan.counts))
        rows, starts, counts = (
            column[order].astype(np.int64) for column in (plan.rows, plan.starts, plan.counts)
        )
        begins = np.cumsum(counts) - counts
        line = np.repeat(np.arange(len(rows)), counts)
        positions = np.arange(len(line)) - begins[line] + starts[line]
        places_of_lines = np.empty(len(rows), np.int64)
        places_of_lines[order] = begins
        yields = plan.yields
        last = (places_of_lines - plan.starts)[yields.lines] + yields.positions - 1
        place = (torch.from_numpy(rows[line]).to(self.device), torch.from_numpy(positions).to(self.device))
        places = tuple(
            make_places(self._slots(table, rows[line], positions), layout)
            for table, layout in zip(self._tables, self._layouts, strict=True)
        )
        buckets = tuple(
            tuple(self._buckets(table, rows, starts, counts, begins, layout))
            for table, layout in zip(self._tables, self._layouts, strict=True)
        )
        return Inputs(
            token_ids=self.tokens[place].long(),
            positions=place[1],
            places=places,
            buckets=buckets,
            last=torch.from_numpy(last).to(self.device),
            rows=yields.rows.astype(np.int64),
            lengths=yields.positions.astype(np.int64),
            begins=places_of_lines,
            steady=self._count_steady(rows[counts == 1], starts[counts == 1]),
        )

    def _count_steady(self, rows: Longs, starts: Longs) -> int:
        before, self._decoding = self._decoding, Decoding(rows, starts)
        same = np.array_equal(before.rows, rows) and np.array_equal(before.starts + 1, starts)
        self._steady = self._steady + 1 if same and len(rows) else 0
        return self._steady

    def _slots(self, table: Longs, rows: Longs, positions: Longs) -> Tensor:
        block, offset = np.divmod(positions, self.block_size)
        return torch.from_numpy(table[rows, block] * self.block_size + offset).to(self.device)

    def _buckets(
        self, table: Longs, rows: Longs, starts: Longs, counts: Longs, begins: Longs, layout: Layout
    ) -> list[Bucket]:
        """Neighbours in the layout that are worth attending together."""
        buckets = []
        for first, end in self._cuts(starts, counts, layout.window):
            count = int(counts[first])
            whole = not starts[first] and layout.window is None
            may_share = count <= GEMV_QUERIES and layout.window is None and end - first >= SHARING_ROWS
            step = count if whole or count <= GEMV_QUERIES else MASKED_QUERIES
            for offset in range(0, count, step):
                part = min(step, count - offset)
                heads = (starts[first:end] + offset).tolist()
                width = -(-(heads[-1] + part) // self.block_size)
                blocks = table[rows[first:end], :width]
                shared = _shared(blocks, heads[0] // self.block_size) if may_share else 0
                begin = int(begins[first]) + offset
                on_device = torch.from_numpy(blocks).to(self.device)
                buckets.append(make_bucket(begin, heads, part, on_device, layout, shared))
        return buckets

    def _cuts(self, starts: Longs, counts: Longs, window: int | None) -> list[tuple[int, int]]:
        """Where the layout parts into buckets: [first, end) of rows, in the order of count, then length."""
        cuts, first = [], 0
        pairs = list(zip(starts.tolist(), counts.tolist(), strict=True))
        for here in range(1, len(pairs) + 1):
            if here < len(pairs) and self._together(pairs[first], pairs[here], here - first, window):
                continue
            cuts.append((first, here))
            first = here
        return cuts

    def _together(
        self, first: tuple[int, int], other: tuple[int, int], rows: int, window: int | None
    ) -> bool:
        if first[1] != other[1]:
            return False
        if first[1] > GEMV_QUERIES:
            # Rows that start together, unless they have to be split: what is masked and long.
            whole = first[0] == 0 and window is None
            return first[0] == other[0] and (whole or first[1] <= MASKED_QUERIES)
        return (other[0] - first[0]) * rows <= PADDING_WORTH_A_BUCKET


def _shared(blocks: Longs, most: int) -> int:
    """Leading blocks that all rows of a bucket have in common, of their first `most`."""
    differs = (blocks[:, :most] != blocks[0, :most]).any(0)
    shared = int(differs.argmax()) if differs.any() else most
    return shared if shared >= SHARED_BLOCKS else 0
