"""What the adapters of a step's tokens add to a product: grouped shrink, then grouped expand, in Triton.

A program works on a block of tokens of one adapter, as the segments on the device say, so that one graph
serves whatever adapters a step has. Programs without a block end at once, before they wait for the kernel
ahead; the first of each launch waits always, so that a launch never ends before that kernel has. Where tokens
are few, the inner dimension of the shrink is split over programs, and the expand adds up their parts, always
in the same order. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.launch import early
from workbench.kernels.low_rank.stack import FIELDS, MODULES, RANKS, Segments, Stack

FEW = 1024  # tokens up to which a block has 16
DEPTH = 128  # of the inner dimension, a step
# Outputs a program of the expand, and its warps, by the size of blocks. Blocks of few tokens: 64 tokens of 1,
# 8 and 32 adapters take 23, 29 and 66 us a layer with 128, 16, 18 and 34 with 512 (kernels/LOG.md).
COLUMNS = {16: (512, 8), 64: (128, 4)}
# Programs that a shrink has at least, if its tokens have one adapter: about two for each processor.
LEAST_PROGRAMS = 256
MOST_SPLITS = 8


def block_size(tokens: int) -> int:
    """Tokens of a block, in a step of so many."""
    return 16 if tokens <= FEW else 64


def rank_tile(max_rank: int) -> int:
    """Ranks that a program of the shrink computes: the modules of one product begin at whole tiles."""
    return next(tile for tile in (16, 32, 64) if tile >= min(max_rank, 64))


def splits_of(tokens: int, n_in: int) -> int:
    """Parts of the inner dimension; follows from the shapes alone, so that a graph holds.

    Split times tokens is never more than what `space_rows` says.
    """
    most = max(1, min(MOST_SPLITS, n_in // DEPTH)) if tokens <= FEW else 1
    wanted = LEAST_PROGRAMS // -(-tokens // 16)
    return 1 << (max(1, min(most, wanted)).bit_length() - 1)


def space_rows(tokens: int) -> int:
    """Lines of `space` that steps of up to so many tokens need."""
    return max(tokens, LEAST_PROGRAMS * 16)


def add_low_rank(
    x: Tensor,
    y: Tensor,
    stack: Stack,
    product: int,
    n_outs: Sequence[int],
    segments: Segments,
    space: Tensor,
) -> Tensor:
    """y += B (A x) of each token's adapter, in place; see the reference.

    Args:
        x: [T, in], contiguous, dtype of the stack; of an embedding [T] int64, token ids.
        y: [T, sum of n_outs], contiguous.
        n_outs: one to three.
        segments: cut into blocks of `block_size(T)`; the launch is as large as their tensors.
        space: [space_rows(T), MODULES * r] float32, for modules of rank r at most; written and read.
    """
    most, splits = space.shape[1] // MODULES, 1
    if x.dim() == 1:
        _gather(x, stack, product, segments, space, most)
    else:
        splits = splits_of(*x.shape)
        _shrink(x, stack, product, segments, space, splits, len(n_outs), most)
    _expand(y, stack, product, n_outs, segments, space, splits)
    return y


def _shrink(
    x: Tensor,
    stack: Stack,
    product: int,
    segments: Segments,
    space: Tensor,
    splits: int,
    modules: int,
    most: int,
) -> None:
    (tokens, n_in), tile = x.shape, rank_tile(most)
    grid = (len(segments.blocks), triton.cdiv(modules * most, tile), splits)
    _shrink_kernel[grid](
        x, n_in, stack.memory, stack.memory.stride(0), stack.table, stack.table.shape[1], product,
        segments.tokens, segments.blocks, space, space.shape[1], tokens, splits,
        T=block_size(tokens), R=tile, K=DEPTH, FIELDS=FIELDS,
        num_warps=2 if tile == 16 and tokens <= FEW else 4, num_stages=4, **early(x.device),
    )  # fmt: skip


def _gather(ids: Tensor, stack: Stack, product: int, segments: Segments, space: Tensor, most: int) -> None:
    _gather_kernel[(len(segments.blocks), triton.cdiv(most, RANKS))](
        ids, stack.memory, stack.memory.stride(0), stack.table, stack.table.shape[1], product,
        segments.tokens, segments.blocks, space, space.shape[1],
        T=block_size(len(ids)), R=RANKS, FIELDS=FIELDS, num_warps=4, **early(ids.device),
    )  # fmt: skip


def _expand(
    y: Tensor,
    stack: Stack,
    product: int,
    n_outs: Sequence[int],
    segments: Segments,
    space: Tensor,
    splits: int,
) -> None:
    outs = [*n_outs, 0, 0][:3]
    size = block_size(y.shape[0])
    columns, warps = COLUMNS[size]
    tiles = [triton.cdiv(n, columns) for n in outs]
    _expand_kernel[(len(segments.blocks), sum(tiles))](
        y, y.shape[1], *outs, *tiles[:2], stack.memory, stack.memory.stride(0), stack.table,
        stack.table.shape[1], product, segments.tokens, segments.blocks, space, space.shape[1],
        y.shape[0], splits,
        T=size, N=columns, R=RANKS, S=MOST_SPLITS if size == 16 else 1, FIELDS=FIELDS,
        num_warps=warps, num_stages=2, **early(y.device),
    )  # fmt: skip


@triton.jit
def _block_of(blocks, block):
    """Slot, first and end of a block; one that is not in use has no tokens."""
    at = blocks + 3 * block
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit(do_not_specialize=["products", "product", "num_tokens", "splits"])
def _shrink_kernel(
    x, n_in, memory, words, table, products, product, tokens, blocks, space, width, num_tokens, splits,
    T: tl.constexpr, R: tl.constexpr, K: tl.constexpr, FIELDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # Segments, table and memory were written ahead of the whole chain of kernels.
    slot, first, end = _block_of(blocks, tl.program_id(0))
    used = first < end
    fields = table + (slot * products + product) * FIELDS
    offset = tl.multiple_of(tl.load(fields, mask=used, other=0), 16)
    ranks = tl.load(fields + 1, mask=used, other=0)
    rank = tl.program_id(1) * R + tl.arange(0, R)
    place = first + tl.arange(0, T)
    real = place < end
    token = tl.load(tokens + place, mask=real, other=0).to(tl.int64)
    if EARLY:
        gdc_launch_dependents()
        if used | (tl.program_id(0) + tl.program_id(1) + tl.program_id(2) == 0):
            gdc_wait()
    if used & (tl.program_id(1) * R < ranks):
        split = tl.program_id(2)
        span = tl.cdiv(tl.cdiv(n_in, splits), K) * K
        begin = split * span
        a_at = memory + slot.to(tl.int64) * words + offset + rank[:, None].to(tl.int64) * n_in
        x_at = x + token[:, None] * n_in
        acc = tl.zeros([T, R], tl.float32)
        for k in range(begin, tl.minimum(begin + span, n_in), K):
            column = k + tl.arange(0, K)[None, :]
            inside = column < n_in
            h = tl.load(x_at + column, mask=real[:, None] & inside, other=0.0)
            a = tl.load(a_at + column, mask=(rank < ranks)[:, None] & inside, other=0.0)
            acc = tl.dot(h, a.T, acc, input_precision="ieee")
        at = (split * num_tokens + place)[:, None] * width + rank[None, :]
        tl.store(space + at, acc, mask=real[:, None] & (rank < ranks)[None, :])


@triton.jit(do_not_specialize=["products", "product"])
def _gather_kernel(
    ids, memory, words, table, products, product, tokens, blocks, space, width,
    T: tl.constexpr, R: tl.constexpr, FIELDS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    slot, first, end = _block_of(blocks, tl.program_id(0))
    used = first < end
    fields = table + (slot * products + product) * FIELDS
    offset = tl.multiple_of(tl.load(fields, mask=used, other=0), 16)
    ranks = tl.load(fields + 1, mask=used, other=0)
    rank = tl.program_id(1) * R + tl.arange(0, R)
    place = first + tl.arange(0, T)
    real = place < end
    token = tl.load(tokens + place, mask=real, other=0).to(tl.int64)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    here = real[:, None] & (rank < ranks)[None, :]
    line = tl.load(ids + token, mask=real, other=0)
    at = memory + slot.to(tl.int64) * words + offset + line[:, None] * ranks + rank[None, :]
    a = tl.load(at, mask=here, other=0.0)
    tl.store(space + place[:, None] * width + rank[None, :], a.to(tl.float32), mask=here)


@triton.jit(do_not_specialize=["products", "product", "num_tokens", "splits", "tiles0", "tiles1"])
def _expand_kernel(
    y, stride, out0, out1, out2, tiles0, tiles1, memory, words, table, products, product,
    tokens, blocks, space, width, num_tokens, splits,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, S: tl.constexpr, FIELDS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    slot, first, end = _block_of(blocks, tl.program_id(0))
    tile = tl.program_id(1)
    module = 0
    start = 0  # column at which the module begins
    n_out = out0
    if tile >= tiles0 + tiles1:
        module, start, n_out, tile = 2, out0 + out1, out2, tile - tiles0 - tiles1
    elif tile >= tiles0:
        module, start, n_out, tile = 1, out0, out1, tile - tiles0
    used = first < end
    fields = table + (slot * products + product) * FIELDS + 2 + 3 * module
    begin = tl.load(fields, mask=used, other=0)
    ranks = tl.load(fields + 1, mask=used, other=0)
    offset = tl.multiple_of(tl.load(fields + 2, mask=used, other=0), 16)
    place = first + tl.arange(0, T)
    real = place < end
    token = tl.load(tokens + place, mask=real, other=0).to(tl.int64)
    column = tile * N + tl.arange(0, N)
    inside = column < n_out
    rank = tl.arange(0, R)
    b_at = memory + slot.to(tl.int64) * words + offset + column[None, :]
    # No kernel of the chain writes weights: they are asked for ahead of the wait.
    b = tl.load(
        b_at + rank[:, None].to(tl.int64) * n_out, mask=inside[None, :] & (rank < ranks)[:, None], other=0.0
    )
    if EARLY:
        gdc_launch_dependents()
        if used | (tl.program_id(0) + tl.program_id(1) == 0):
            gdc_wait()
    if used & (ranks > 0):
        at = y + token[:, None] * stride + start + column[None, :]
        here = real[:, None] & inside[None, :]
        before = tl.load(at, mask=here, other=0.0).to(tl.float32)
        # [S, T, R], so that all parts are asked for at once
        split = tl.arange(0, S)[:, None, None]
        part = (split < splits) & real[None, :, None]
        h_at = space + (split * num_tokens + place[None, :, None]) * width + begin
        h = tl.sum(tl.load(h_at + rank[None, None, :], mask=part, other=0.0), axis=0)
        acc = tl.dot(h.to(b.dtype), b, input_precision="ieee")
        for r in range(R, ranks, R):
            rank = r + tl.arange(0, R)
            h = tl.sum(tl.load(h_at + rank[None, None, :], mask=part, other=0.0), axis=0)
            b = tl.load(b_at + rank[:, None].to(tl.int64) * n_out, mask=inside[None, :], other=0.0)
            acc = tl.dot(h.to(b.dtype), b, acc, input_precision="ieee")
        tl.store(at, (before + acc).to(y.dtype.element_ty), mask=here)


def make_space(tokens: int, ranks: int, device: torch.device) -> Tensor:
    """Memory for steps of up to so many tokens, and products of up to so many ranks."""
    return torch.zeros((space_rows(tokens), ranks), dtype=torch.float32, device=device)
