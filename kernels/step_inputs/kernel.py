"""A step's flat inputs cut from the batch's tables, one launch an operation. Triton.

Counts and tables are read on the device, so that a captured graph serves any batch of its shapes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_LAY_OUT_BLOCK = 128  # tokens a program
_SCATTER_BLOCK = 128


def lay_out(
    rows: Tensor,
    starts: Tensor,
    begins: Tensor,
    tokens: Tensor,
    tables: tuple[Tensor, ...],
    block_size: int,
    token_ids: Tensor,
    positions: Tensor,
    slots: tuple[Tensor, ...],
) -> None:
    """Fill a step's token ids, positions and slots; see the reference for shapes.

    Raises:
        ValueError: tables of different shapes.
    """
    if any(table.shape != tables[0].shape for table in tables):
        raise ValueError(f"tables of {[tuple(t.shape) for t in tables]}: KV groups share one table shape")
    num_tokens = token_ids.shape[0]
    _lay_out[(-(-num_tokens // _LAY_OUT_BLOCK),)](
        rows,
        starts,
        begins,
        rows.shape[0],
        tokens,
        tokens.stride(0),
        tables,
        tables[0].stride(0),
        block_size,
        token_ids,
        positions,
        slots,
        num_tokens,
        STEPS=rows.shape[0].bit_length(),
        BLOCK=_LAY_OUT_BLOCK,
        num_warps=_LAY_OUT_BLOCK // 32,
    )


def append(tokens: Tensor, rows: Tensor, lengths: Tensor, ids: Tensor) -> None:
    """tokens[rows, lengths] = ids, in place; rows under 0 are skipped. [m] int32; ids int64 or int32."""
    count = rows.shape[0]
    _append[(-(-count // _SCATTER_BLOCK),)](
        tokens, tokens.stride(0), rows, lengths, ids, count, BLOCK=_SCATTER_BLOCK, num_warps=4
    )


def apply_growth(tables: tuple[Tensor, ...], rows: Tensor, places: Tensor, blocks: Tensor) -> None:
    """tables[g][rows[g], places[g]] = blocks[g], in place; rows under 0 are skipped. [groups, n] int32."""
    count = rows.shape[1]
    _apply_growth[(-(-count // _SCATTER_BLOCK),)](
        tables,
        tables[0].stride(0),
        rows,
        places,
        blocks,
        rows.stride(0),
        count,
        BLOCK=_SCATTER_BLOCK,
        num_warps=4,
    )


# What changes from step to step: code compiled for its divisors, or for where a field of a packed array lies,
# would be compiled many times over, in the middle of serving.
@triton.jit(do_not_specialize=["num_requests", "num_tokens"])
def _lay_out(
    rows,
    starts,
    begins,
    num_requests,
    tokens,
    tokens_stride,
    tables,
    table_stride,
    block_size,
    token_ids,
    positions,
    slots,
    num_tokens,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_tokens
    used = place < tl.load(begins + num_requests)
    # The last request that begins at or before `place`: [low, high) holds it; empty requests fall out, for
    # the next one begins at the same place.
    low = tl.zeros([BLOCK], tl.int32)
    high = tl.zeros([BLOCK], tl.int32) + num_requests
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        before = tl.load(begins + middle, mask=high - low > 1, other=0) <= place
        narrow = high - low > 1
        low = tl.where(narrow & before, middle, low)
        high = tl.where(narrow & (before == 0), middle, high)
    row = tl.load(rows + low, mask=used, other=0).to(tl.int64)
    start = tl.load(starts + low, mask=used, other=0)
    position = tl.where(used, place - tl.load(begins + low) + start, 0)
    token = tl.load(tokens + row * tokens_stride + position, mask=used, other=0)
    tl.store(token_ids + place, token.to(tl.int64), mask=inside)
    tl.store(positions + place, position.to(tl.int64), mask=inside)
    block = position // block_size
    offset = position - block * block_size
    for group in tl.static_range(len(tables)):
        number = tl.load(tables[group] + row * table_stride + block, mask=used, other=0).to(tl.int64)
        slot = tl.where(used, number * block_size + offset, 0)
        tl.store(slots[group] + place, slot, mask=inside)


@triton.jit(do_not_specialize=["count"])
def _append(tokens, tokens_stride, rows, lengths, ids, count, BLOCK: tl.constexpr):
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + line, mask=line < count, other=-1).to(tl.int64)
    kept = row >= 0
    length = tl.load(lengths + line, mask=kept, other=0)
    token = tl.load(ids + line, mask=kept, other=0)
    tl.store(tokens + row * tokens_stride + length, token.to(tl.int32), mask=kept)


@triton.jit(
    do_not_specialize=["stride", "count"], do_not_specialize_on_alignment=["rows", "places", "blocks"]
)
def _apply_growth(tables, table_stride, rows, places, blocks, stride, count, BLOCK: tl.constexpr):
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    for group in tl.static_range(len(tables)):
        row = tl.load(rows + group * stride + line, mask=line < count, other=-1).to(tl.int64)
        kept = row >= 0
        place = tl.load(places + group * stride + line, mask=kept, other=0)
        block = tl.load(blocks + group * stride + line, mask=kept, other=0)
        tl.store(tables[group] + row * table_stride + place, block, mask=kept)
