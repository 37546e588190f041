"""The two programs of ragged attention: a tile of one request, and a tile of rows of all requests.

Rows, counts, lengths and tables are read here, on the device. Knows the batch's layout, and nothing of how
many programs there are for which batch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.attention.walk import (
    _arrive,
    _load_rows,
    _merge,
    _row,
    _store_part,
    _store_rows,
    _walk_range,
)


@triton.jit
def _find(begins, i, requests, QUERIES: tl.constexpr, BLOCK_R: tl.constexpr):
    """Request of tile i and the tile's first query within it, where requests lie one after the other.

    Request r is given the tiles from begins[r] // QUERIES + r on: never too few, at most one too many.
    """
    r = tl.arange(0, BLOCK_R)
    begin = tl.load(begins + r, mask=r < requests, other=2**30)
    found = tl.sum((begin // QUERIES + r <= i).to(tl.int32)) - 1
    return found, (i - (tl.load(begins + found) // QUERIES + found)) * QUERIES


@triton.jit
def _piece(span, pieces, least, BLOCK_N: tl.constexpr):
    """Keys of each of the equal pieces that `span` keys are cut into; a multiple of BLOCK_N."""
    n = tl.maximum(tl.minimum(pieces, tl.cdiv(span, least)), 1)
    return tl.maximum(tl.cdiv(tl.cdiv(span, n), BLOCK_N), 1) * BLOCK_N


@triton.jit
def _cut(lo, hi, piece, pieces, least, BLOCK_N: tl.constexpr):
    """Into how many pieces keys lo .. hi - 1 are cut, and the bounds of one of them."""
    size = _piece(hi - lo, pieces, least, BLOCK_N)
    return tl.cdiv(hi - lo, size), lo + piece * size, tl.minimum(lo + piece * size + size, hi)


# what changes with the size of a batch; code compiled for its divisors would be compiled many times over
SIZES = ("requests", "pieces", "least", "slot_rows", "shared_pieces", "shared_least", "low", "high")


@triton.jit(do_not_specialize=SIZES[:4])
def _attend_shared(
    query, keys, values, scales, rows, begins, tables, shared, parts, tops, totals,
    scale, requests, table_width, plane, pieces, least, slot_rows,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, QUERIES: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, FP8: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Tiles of rows of all requests over the blocks they have in common; leaves parts behind."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    head, first, piece = tl.program_id(0), tl.program_id(1) * QUERIES, tl.program_id(2)
    used = tl.load(begins + requests)
    parts_in_all, lo, hi = _cut(0, tl.load(shared) * BLOCK_SIZE, piece, pieces, least, BLOCK_N)
    if (first >= used) | (piece >= parts_in_all):
        return
    m = tl.arange(0, BLOCK_M)
    token = first + m // GROUP
    valid = (token < used) & (m < QUERIES * GROUP)
    step = tl.num_programs(0) * GROUP
    at = _row(first * step + head * GROUP, step, m, GROUP)
    q = _load_rows(query, at, valid, D, BLOCK_D)
    table = tables + tl.load(rows).to(tl.int64) * table_width
    everything = tl.full([BLOCK_M], 2**30, tl.int32)  # all of it lies before every query
    acc, top, total = _walk_range(
        q, lo, lo + (hi - lo) // BLOCK_N * BLOCK_N, hi, everything,
        keys, values, scales, head, plane, table, scale,
        FP8, True, 0, BLOCK_M, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION,
    )  # fmt: skip
    _store_part(parts, tops, totals, piece * slot_rows + at, valid, acc, top, total, D, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _attend(
    query, keys, values, scales, out, rows, starts, begins, tables, shared, parts, tops, totals, counters,
    scale, requests, table_width, plane, pieces, least, slot_rows, shared_pieces, shared_least, low, high,
    BLOCK_R: tl.constexpr, SLOTS: tl.constexpr, FEW: tl.constexpr, FOLD: tl.constexpr,
    SPLIT: tl.constexpr, SHARED_N: tl.constexpr, BY_TOKEN: tl.constexpr, WINDOW: tl.constexpr,
    TWO_WALKS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, QUERIES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, FP8: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One tile of a request with low < count <= high over one piece of its context."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    # the last tiles first: they see the longest contexts of a prompt
    head, tile, piece = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    r, first = tile, 0
    if BLOCK_R > 0:
        r, first = _find(begins, tile, requests, QUERIES, BLOCK_R)
    # all that is needed at once: behind the return each load would wait for the one before
    begin = tl.load(begins + r)
    count = tl.load(begins + r + 1) - begin
    start = tl.load(starts + r) + first  # of the tile from here on
    row = tl.load(rows + r)
    lo = tl.load(shared) * BLOCK_SIZE if SHARED_N > 0 else 0
    if (count <= low) | (count > high) | (first >= count):
        return
    count = tl.minimum(count - first, QUERIES)
    common = 0
    if WINDOW > 0:
        lo = tl.maximum(start + 1 - WINDOW, 0) // BLOCK_N * BLOCK_N
    if SHARED_N > 0:
        common = tl.cdiv(lo, _piece(lo, shared_pieces, shared_least, SHARED_N))
    own, lo, hi = _cut(lo, start + count, piece, pieces, least, BLOCK_N)
    if piece >= own:
        return
    m = tl.arange(0, BLOCK_M)
    valid = m // GROUP < count
    step = tl.num_programs(0) * GROUP
    corner = (begin + first) * step + head * GROUP  # row of m = 0 in query and out
    at = _row(corner, step, m, GROUP)
    acc, top, total = _walk_range(
        _load_rows(query, at, valid, D, BLOCK_D),
        lo, lo + tl.maximum(tl.minimum(hi, start + 1) - lo, 0) // BLOCK_N * BLOCK_N, hi, start + m // GROUP,
        keys, values, scales, head, plane, tables + row.to(tl.int64) * table_width,
        scale, FP8, TWO_WALKS, WINDOW, BLOCK_M, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION,
    )  # fmt: skip
    if own + common == 1:
        _store_rows(out, at, valid, acc / tl.where(valid, total, 1.0)[:, None], D, BLOCK_D)
    elif SPLIT or SHARED_N > 0:
        place = tile * tl.num_programs(0) + head
        base = corner if BY_TOKEN else place * (QUERIES * GROUP)
        base_step = step if BY_TOKEN else GROUP
        part = (shared_pieces + piece) * slot_rows + _row(base, base_step, m, GROUP)
        _store_part(parts, tops, totals, part, valid, acc, top, total, D, BLOCK_D)
        if _arrive(counters + place, own, SPLIT):
            _merge(
                parts, tops, totals, out, base, base_step, corner, step, count * GROUP,
                own, shared_pieces, common, slot_rows, FOLD, SLOTS, FEW, GROUP, D, BLOCK_D,
            )  # fmt: skip
