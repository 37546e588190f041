"""A step's flat inputs cut from the batch's tables, in torch. Knows rows, tokens and block numbers only.

Everything here writes to tensors it is given, for the addresses are those a graph replays.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Fill a step's token ids, positions and slots; what is past `begins[R]` is token 0, position 0, slot 0.

    ::

        t         0 ....... begins[1] ....... begins[R] ....... T
                  request 0 | request 1 ...   | padding: the null block

    Args:
        rows: [R] int32; line of `tokens` and of each table.
        starts: [R] int32; position of the first token of each request in this step.
        begins: [R + 1] int32, ascending from 0; where in T each request begins; equal neighbours: no tokens.
        tokens: [max_rows, max_length] int32.
        tables: per KV group [max_rows, max_blocks] int32; block numbers.
        token_ids: [T] int64, written.
        positions: [T] int64, written.
        slots: per KV group [T] int64, written; block * block_size + offset.
    """
    place = torch.arange(len(token_ids), device=token_ids.device)
    line = (torch.searchsorted(begins, place, right=True) - 1).clamp_(max=len(rows) - 1)
    used = place < begins[-1]
    row = torch.where(used, rows[line].long(), 0)
    position = torch.where(used, place - begins[line] + starts[line], 0)
    token_ids.copy_(torch.where(used, tokens[row, position], 0))
    positions.copy_(position)
    block, offset = position // block_size, position % block_size
    for slot, table in zip(slots, tables, strict=True):
        slot.copy_(torch.where(used, table[row, block].long() * block_size + offset, 0))


def append(tokens: Tensor, rows: Tensor, lengths: Tensor, ids: Tensor) -> None:
    """tokens[rows, lengths] = ids, in place; rows under 0 are skipped.

    Args:
        tokens: [max_rows, max_length] int32. rows, lengths: [m] int32. ids: [m] int64 or int32.
    """
    kept = rows >= 0
    tokens[rows[kept].long(), lengths[kept].long()] = ids[kept].to(tokens.dtype)


def apply_growth(tables: tuple[Tensor, ...], rows: Tensor, places: Tensor, blocks: Tensor) -> None:
    """tables[g][rows[g], places[g]] = blocks[g], in place; rows under 0 are skipped.

    Args:
        tables: per KV group [max_rows, max_blocks] int32. rows, places, blocks: [groups, n] int32.
    """
    for table, row, place, block in zip(tables, rows, places, blocks, strict=True):
        kept = row >= 0
        table[row[kept].long(), place[kept].long()] = block[kept]
