"""How the weights of many adapters lie in memory, so that one launch finds what each token needs.

A slot is a line of `memory`. An adapter's weights lie in it one behind the other, as large as they are::

    product 0: A of its modules, one below the other [ranks, in] | B of module 0 [rank, out] | B of the next
    product 1: ...

and `table` says, for each slot and product, where: ranks are multiples of 16, filled up with zeros, and a
product that an adapter leaves alone has none. Modules that are computed by one product (q, k and v) share
their input, and their outputs lie side by side. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

RANKS = 16  # ranks are filled up to multiples of this: what matrix units take
MODULES = 3  # most modules of a product
FIELDS = (
    12  # of a line of the table: A's offset, all ranks; for each module first rank, ranks, B's offset; unused
)
ALIGNED = 16  # numbers


class Stack(NamedTuple):
    """The adapters on a device."""

    memory: Tensor  # [slots, words]
    table: Tensor  # [slots, products, FIELDS] int32


class Module(NamedTuple):
    """One module's weights in an adapter."""

    number: int  # which of the product's modules it is
    shrink: Tensor  # [rank, in]
    expand: Tensor  # [out, rank], scale folded in


class Segments(NamedTuple):
    """Which tokens of a step have which adapter: those of one lie side by side, and are cut into blocks."""

    tokens: Tensor  # [t] int32; tokens that have one, adapter after adapter
    blocks: Tensor  # [b, 3] int32; slot, and where in `tokens` the block begins and ends; zeros: not in use
    count: Tensor  # [1] int32; blocks that are in use


def padded(rank: int) -> int:
    """As many ranks as it takes in memory; 0 stays 0."""
    return -(-rank // RANKS) * RANKS


def words_of(rank: int, n_in: int, n_outs: Sequence[int]) -> int:
    """Numbers that a product takes whose modules all have this rank."""
    rank = padded(rank)
    return sum(_aligned(rank * n_out) for n_out in n_outs) + _aligned(rank * len(n_outs) * n_in)


def write(
    memory: Tensor, table: npt.NDArray[np.int32], begin: int, modules: Sequence[Module], *, gathers: bool
) -> int:
    """Write an adapter's part of one product; where the next may begin.

    Args:
        memory: [words]; a slot, or a copy of one on the host.
        table: [FIELDS]; the product's line of the slot.
        begin: a multiple of ALIGNED.
        modules: ascending in number.
        gathers: A is read by columns, as of an embedding: it lies there transposed, [in, ranks].
    """
    ranks = [padded(len(module.shrink)) for module in modules]
    table[:] = 0
    table[:2] = begin, sum(ranks)
    n_in = modules[0].shrink.shape[1]
    shrink = memory.new_zeros((sum(ranks), n_in))
    place, end = 0, begin + _aligned(sum(ranks) * n_in)
    for (number, down, up), rank in zip(modules, ranks, strict=True):
        shrink[place : place + len(down)] = down
        table[2 + 3 * number : 5 + 3 * number] = place, rank, end
        expand = memory[end : end + rank * len(up)].view(rank, len(up))
        expand[: len(down)] = up.T
        expand[len(down) :] = 0
        place, end = place + rank, end + _aligned(rank * len(up))
    memory[begin : begin + shrink.numel()] = (shrink.T if gathers else shrink).reshape(-1)
    return end


def _aligned(words: int) -> int:
    return -(-words // ALIGNED) * ALIGNED


class Cut(NamedTuple):
    """Segments on the host."""

    tokens: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int32]  # [b, 3], those in use


def cut(slots: npt.NDArray[np.int64], size: int) -> Cut:
    """Segments of a step, in blocks of at most `size` tokens; `slots` [T], less than 0 for no adapter."""
    order = np.argsort(slots, kind="stable")
    order = order[int((slots < 0).sum()) :]
    sorted_slots = slots[order]
    ends = [*np.flatnonzero(np.diff(sorted_slots)) + 1, len(order)] if len(order) else []
    blocks, begin = [], 0
    for end in ends:
        slot = int(sorted_slots[begin])
        blocks += [(slot, first, min(first + size, end)) for first in range(begin, end, size)]
        begin = end
    return Cut(order.astype(np.int32), np.array(blocks, np.int32).reshape(-1, 3))


def most_blocks(tokens: int, size: int, slots: int) -> int:
    """Blocks that so many tokens are cut into at most."""
    return -(-tokens // size) + min(slots, tokens)


def upload(found: Cut, device: torch.device, tokens: int = 0, blocks: int = 1) -> Segments:
    """Segments on a device, with room for at least so many tokens and blocks."""
    places = np.zeros(max(tokens, len(found.tokens)), np.int32)
    lines = np.zeros((max(blocks, len(found.blocks)), 3), np.int32)
    places[: len(found.tokens)], lines[: len(found.blocks)] = found.tokens, found.blocks
    count = np.array([len(found.blocks)], np.int32)
    return Segments(*(torch.from_numpy(column).to(device) for column in (places, lines, count)))
