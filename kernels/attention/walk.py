"""Attention of one tile of query rows over a range of a paged context, and the merging of such parts.

Device functions only. Knows nothing of grids, requests or block tables beyond the line it is handed.

What a tile carries from key to key, and what a part leaves behind for merging, is the running triple
    top    [rows]     the largest score so far, in units of log2
    total  [rows]     sum of 2^(score - top)
    acc    [rows, D]  sum of 2^(score - top) * value
so that result = acc / total, and two triples merge by scaling both to the larger top.
"""

from __future__ import annotations

import triton
import triton.language as tl
from workbench.kernels.attention.eight_bits import _walk_range_pairs

# The top of a row that has seen nothing: finite, for 2^(EMPTY - EMPTY) is 1 and -inf - -inf is not a number.
EMPTY = tl.constexpr(-1e30)


@triton.jit
def _walk(
    q,  # [ROWS, BLOCK_D]
    acc,
    top,
    total,
    lo,
    hi,  # keys lo .. hi - 1
    position,  # [ROWS]; each row's own position: it sees nothing behind
    keys,
    values,  # of one head
    table,  # block numbers of the request
    scale,  # in units of log2
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,  # a head's keys are too many numbers for 32 bits
    PRECISION: tl.constexpr,
):
    """Carry the triple of a tile over a range of keys. Unmasked: whole steps of keys that all rows see."""
    d = tl.arange(0, BLOCK_D)
    if WINDOW > 0:
        gone = tl.min(position, 0) - WINDOW  # the last key behind all windows: its block may be another's now
    for at in range(lo, hi, BLOCK_N):
        key = at + tl.arange(0, BLOCK_N)
        if MASKED:
            inside = key < hi
            if WINDOW > 0:
                inside &= key > gone
            block = tl.load(table + key // BLOCK_SIZE, mask=inside, other=0)
        else:
            block = tl.load(table + key // BLOCK_SIZE)
        if WIDE:
            block = block.to(tl.int64)
        place = (block * BLOCK_SIZE + key % BLOCK_SIZE)[:, None] * D + d[None, :]
        # A masked weight is 0, but times what a foreign slot holds it may be NaN: values nobody sees are 0.
        if MASKED and D < BLOCK_D:
            there = inside[:, None] & (d < D)[None, :]
            k = tl.load(keys + place, mask=there, other=0.0)
            v = tl.load(values + place, mask=there, other=0.0)
        elif MASKED:
            k = tl.load(keys + place, mask=inside[:, None], other=0.0)
            v = tl.load(values + place, mask=inside[:, None], other=0.0)
        elif D < BLOCK_D:
            k = tl.load(keys + place, mask=(d < D)[None, :], other=0.0)
            v = tl.load(values + place, mask=(d < D)[None, :], other=0.0)
        else:
            k = tl.load(keys + place)
            v = tl.load(values + place)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            seen = inside[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                seen &= key[None, :] > position[:, None] - WINDOW
            score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1) * scale)
        weight = tl.exp2(score * scale - new[:, None])
        fade = tl.exp2(top - new)
        total = total * fade + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
        top = new
    return acc, top, total


@triton.jit
def _walk_range(
    q, lo, full, hi, position, keys, values, scales, head, plane, table, scale,
    FP8: tl.constexpr, TWO_WALKS: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The triple of a tile over keys lo .. hi - 1; `full`: in two walks, where the unmasked one ends.

    keys and values: of all heads, `plane` numbers each. FP8: 0: they have the dtype of q; 1: eight bits and
    scales of all keys and of all values; 2: and scales of each token's head. 3 and 4: the same, interpreted.
    """
    if FP8 > 0:
        acc, top, total = _walk_range_pairs(
            q, lo, full, hi, position, keys, values, scales, head, plane, table, scale,
            TWO_WALKS, EMPTY, FP8 % 2 == 0, WINDOW, BLOCK_M, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION,
            FP8 < 3,
        )  # fmt: skip
    else:
        offset = head.to(tl.int64) * plane
        keys += offset
        values += offset
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        top = tl.full([BLOCK_M], EMPTY, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        if TWO_WALKS:
            acc, top, total = _walk(
                q, acc, top, total, lo, full, position, keys, values, table, scale,
                False, 0, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION,
            )  # fmt: skip
            lo = full
        acc, top, total = _walk(
            q, acc, top, total, lo, hi, position, keys, values, table, scale,
            True, WINDOW, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION,
        )  # fmt: skip
    return acc, top, total


@triton.jit
def _row(corner, step, m, GROUP: tl.constexpr):
    """Where row m of a tile lies: rows of a query side by side, its queries `step` rows apart."""
    return corner + m // GROUP * step + m % GROUP


@triton.jit
def _load_rows(source, at, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    return tl.load(source + at[:, None] * D + d[None, :], mask=valid[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _store_rows(target, at, valid, data, D: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    there = valid[:, None] & (d < D)[None, :]
    tl.store(target + at[:, None] * D + d[None, :], data.to(target.dtype.element_ty), mask=there)


@triton.jit
def _store_part(parts, tops, totals, at, valid, acc, top, total, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Leave a triple behind in rows `at` of parts [n, D], tops and totals [n], all float32."""
    _store_rows(parts, at, valid, acc, D, BLOCK_D)
    tl.store(tops + at, top, mask=valid)
    tl.store(totals + at, total, mask=valid)


@triton.jit
def _arrive(counter, expected, SPLIT: tl.constexpr):
    """Whether this program is the last of `expected` to store its part; if so, the counter is 0 again."""
    tl.debug_barrier()  # all of the program's stores come before its arrival
    last = expected == 1
    if SPLIT and expected > 1:
        last = tl.atomic_add(counter, 1, sem="acq_rel") == expected - 1
        if last:
            tl.store(counter, 0)
    return last


@triton.jit
def _merge_rows(parts, tops, totals, at, there, SLOTS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The result [few, BLOCK_D] float32 of the parts in rows `at` [SLOTS, few] that are `there`."""
    d = tl.arange(0, BLOCK_D)
    # .cg: other programs wrote these, and only the second-level cache is common to all
    top = tl.load(tops + at, mask=there, other=EMPTY, cache_modifier=".cg")
    total = tl.load(totals + at, mask=there, other=0.0, cache_modifier=".cg")
    inside = there[:, :, None] & (d < D)[None, None, :]
    acc = tl.load(parts + at[:, :, None] * D + d[None, None, :], mask=inside, other=0.0, cache_modifier=".cg")
    fade = tl.exp2(top - tl.max(top, 0)[None, :])
    whole = tl.sum(total * fade, 0)
    whole = tl.where(whole > 0, whole, 1.0)  # rows beyond the tile
    return tl.sum(acc * fade[:, :, None], 0) / whole[:, None]


@triton.jit
def _fold_rows(
    parts, tops, totals, at, valid, slots, slot_rows,
    FEW: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The same from the first `slots` slots, one after the other; `at` [FEW]: the rows in the first."""
    d = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (d < D)[None, :]
    acc = tl.zeros([FEW, BLOCK_D], tl.float32)
    top = tl.full([FEW], EMPTY, tl.float32)
    total = tl.zeros([FEW], tl.float32)
    for slot in range(slots):
        place = at + slot * slot_rows
        other = tl.load(tops + place, mask=valid, other=EMPTY, cache_modifier=".cg")
        more = tl.load(totals + place, mask=valid, other=0.0, cache_modifier=".cg")
        part = tl.load(parts + place[:, None] * D + d[None, :], mask=inside, other=0.0, cache_modifier=".cg")
        new = tl.maximum(top, other)
        fade, gain = tl.exp2(top - new), tl.exp2(other - new)
        acc = acc * fade[:, None] + part * gain[:, None]
        total = total * fade + more * gain
        top = new
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _merge(
    parts, tops, totals, out, base, base_step, corner, corner_step, rows, own, first_own, common, slot_rows,
    FOLD: tl.constexpr, SLOTS: tl.constexpr, FEW: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the result of a tile's `rows` rows, FEW at a time, from their parts in `own + common` slots.

    FOLD: many rows of few slots, none of them common, are read slot by slot.
    """
    slot = tl.arange(0, SLOTS)
    filled = (slot < common) | ((slot >= first_own) & (slot < first_own + own))
    for few in range(0, rows, FEW):
        m = few + tl.arange(0, FEW)
        valid = m < rows
        at = _row(base, base_step, m, GROUP)
        if FOLD:
            result = _fold_rows(parts, tops, totals, at, valid, own, slot_rows, FEW, D, BLOCK_D)
        else:
            at = slot[:, None] * slot_rows + at[None, :]
            there = filled[:, None] & valid[None, :]
            result = _merge_rows(parts, tops, totals, at, there, SLOTS, D, BLOCK_D)
        _store_rows(out, _row(corner, corner_step, m, GROUP), valid, result, D, BLOCK_D)
