"""The walk of walk.py over keys and values of eight bits, which become sixteen in registers.

Two numbers that lie side by side are loaded as one of sixteen bits, so that the matrix units' own loads,
which know no smaller ones, bring them where they are multiplied; there they part. What is multiplied is
the even dimensions of a head and the odd ones, each by itself: two products of half the depth for a score,
two halves of the result. (Loaded as bytes, values had to be gathered one by one: kernels/LOG.md.)

Device functions only; what a tile carries is the triple of walk.py, its acc in two halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

BIAS = tl.constexpr(127)  # of an exponent's byte
PAIRS_OF_E4M3 = tl.constexpr(
    "{ .reg .b32 x; .reg .b16 a, b; prmt.b32 x, $2, 0, 0x3120; mov.b32 {a, b}, x;"
    " cvt.rn.f16x2.e4m3x2 $0, a; cvt.rn.f16x2.e4m3x2 $1, b; }"
)
PAIRS_OF_E5M2 = tl.constexpr(
    "{ .reg .b32 x; .reg .b16 a, b; prmt.b32 x, $2, 0, 0x3120; mov.b32 {a, b}, x;"
    " cvt.rn.f16x2.e5m2x2 $0, a; cvt.rn.f16x2.e5m2x2 $1, b; }"
)


@triton.jit
def _parted(pairs, KIND: tl.constexpr, COMPILED: tl.constexpr):
    """Of each pair [...] int16 the first and the second number, as float16. KIND: float8e4nv or float8e5."""
    if COMPILED:
        # Two pairs at a time, as they lie in a register.
        return tl.inline_asm_elementwise(
            PAIRS_OF_E4M3 if tl.float8e4nv == KIND else PAIRS_OF_E5M2,
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    first = (pairs & 0xFF).to(tl.uint8).to(KIND, bitcast=True).to(tl.float16)
    second = ((pairs >> 8) & 0xFF).to(tl.uint8).to(KIND, bitcast=True).to(tl.float16)
    return first, second


@triton.jit
def _powers(exponents):
    """2^(e - 127) of the bytes that a cache has beside each token's head."""
    return (exponents.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _queries(q, scale):
    """The even and the odd dimensions of q [ROWS, BLOCK_D], and the scale of each row.

    Two eight-bit keys become float16 by one instruction, and bfloat16 by several. So rows of bfloat16 become
    float16 too, each times a power of two that brings it into the range.
    """
    factor = tl.full([q.shape[0]], 1.0, tl.float32)
    if q.dtype == tl.bfloat16:
        wide = q.to(tl.float32)
        bits = tl.max(tl.abs(wide), 1).to(tl.int32, bitcast=True) & 0x7F800000
        bits = tl.minimum(tl.maximum(bits, 1 << 23), 253 << 23)
        inverse = ((254 << 23) - bits).to(tl.float32, bitcast=True)
        q = (wide * inverse[:, None]).to(tl.float16)
        factor = bits.to(tl.float32, bitcast=True)
    even, odd = tl.split(tl.reshape(q, [q.shape[0], q.shape[1] // 2, 2]))
    return even, odd, factor * scale


@triton.jit
def _walk_pairs(
    even,
    odd,  # [ROWS, BLOCK_D / 2], of q
    acc_even,
    acc_odd,
    top,
    total,
    lo,
    hi,  # keys lo .. hi - 1
    position,  # [ROWS]; each row's own position: it sees nothing behind
    keys,
    values,  # of one head, as int16
    key_powers,
    value_powers,  # of one head; bytes of each token's scales, where there are any
    table,  # block numbers of the request
    scale,  # [ROWS], in units of log2
    KIND: tl.constexpr,  # of the cache's numbers
    PER_HEAD: tl.constexpr,  # each token's head has scales
    WEIGHT: tl.constexpr,  # dtype of weights where they meet values
    MASKED: tl.constexpr,
    WINDOW: tl.constexpr,  # 0: none
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,  # a head's keys are too many numbers for 32 bits
    PRECISION: tl.constexpr,
    COMPILED: tl.constexpr,
):
    """Carry the triple of a tile over a range of keys. Unmasked: whole steps of keys that all rows see."""
    d = tl.arange(0, BLOCK_D // 2)
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
        slot = block * BLOCK_SIZE + key % BLOCK_SIZE
        place = slot[:, None] * (D // 2) + d[None, :]
        # A masked weight is 0, but times what a foreign slot holds it may be NaN: values nobody sees are 0.
        if MASKED and D < BLOCK_D:
            there = inside[:, None] & (d < D // 2)[None, :]
            k = tl.load(keys + place, mask=there, other=0)
            v = tl.load(values + place, mask=there, other=0)
        elif MASKED:
            k = tl.load(keys + place, mask=inside[:, None], other=0)
            v = tl.load(values + place, mask=inside[:, None], other=0)
        elif D < BLOCK_D:
            k = tl.load(keys + place, mask=(d < D // 2)[None, :], other=0)
            v = tl.load(values + place, mask=(d < D // 2)[None, :], other=0)
        else:
            k = tl.load(keys + place)
            v = tl.load(values + place)
        k_even, k_odd = _parted(k, KIND, COMPILED)
        score = tl.dot(even, tl.trans(k_even.to(even.dtype)), input_precision=PRECISION)
        score = tl.dot(odd, tl.trans(k_odd.to(even.dtype)), score, input_precision=PRECISION)
        if PER_HEAD:
            of_keys = tl.load(key_powers + slot, mask=key < hi, other=BIAS)
            score *= _powers(of_keys)[None, :]
        if MASKED:
            seen = inside[None, :] & (key[None, :] <= position[:, None])
            if WINDOW > 0:
                seen &= key[None, :] > position[:, None] - WINDOW
            score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(top, tl.max(score, 1) * scale)
        weight = tl.exp2(score * scale[:, None] - new[:, None])
        fade = tl.exp2(top - new)
        total = total * fade + tl.sum(weight, 1)
        v_even, v_odd = _parted(v, KIND, COMPILED)
        if PER_HEAD:
            of_values = _powers(tl.load(value_powers + slot, mask=key < hi, other=BIAS))[:, None]
            v_even = v_even.to(tl.float32) * of_values
            v_odd = v_odd.to(tl.float32) * of_values
        weight = weight.to(WEIGHT)
        acc_even = tl.dot(weight, v_even.to(WEIGHT), acc_even * fade[:, None], input_precision=PRECISION)
        acc_odd = tl.dot(weight, v_odd.to(WEIGHT), acc_odd * fade[:, None], input_precision=PRECISION)
        top = new
    return acc_even, acc_odd, top, total


@triton.jit
def _walk_range_pairs(
    q, lo, full, hi, position, keys, values, scales, head, plane, table, scale,
    TWO_WALKS: tl.constexpr, EMPTY: tl.constexpr, PER_HEAD: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr, COMPILED: tl.constexpr,
):  # fmt: skip
    """The triple of a tile over keys lo .. hi - 1; `full`: in two walks, where the unmasked one ends.

    keys, values and scales: of all heads, `plane` numbers each.
    """
    KIND: tl.constexpr = keys.dtype.element_ty
    WEIGHT: tl.constexpr = q.dtype if PER_HEAD or q.dtype == tl.float32 else tl.float16
    offset = head.to(tl.int64) * plane
    key_powers, value_powers = scales, scales
    if PER_HEAD:
        key_powers += offset // D
        value_powers += (tl.num_programs(0).to(tl.int64) * plane + offset) // D
    else:
        scale *= tl.load(scales)
    even, odd, scale = _queries(q, scale)
    keys = (keys + offset).to(tl.pointer_type(tl.int16))
    values = (values + offset).to(tl.pointer_type(tl.int16))
    acc_even = tl.zeros([BLOCK_M, BLOCK_D // 2], tl.float32)
    acc_odd = tl.zeros([BLOCK_M, BLOCK_D // 2], tl.float32)
    top = tl.full([BLOCK_M], EMPTY, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if TWO_WALKS:
        acc_even, acc_odd, top, total = _walk_pairs(
            even, odd, acc_even, acc_odd, top, total, lo, full, position,
            keys, values, key_powers, value_powers, table, scale,
            KIND, PER_HEAD, WEIGHT, False, 0, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION, COMPILED,
        )  # fmt: skip
        lo = full
    acc_even, acc_odd, top, total = _walk_pairs(
        even, odd, acc_even, acc_odd, top, total, lo, hi, position,
        keys, values, key_powers, value_powers, table, scale,
        KIND, PER_HEAD, WEIGHT, True, WINDOW, BLOCK_N, BLOCK_SIZE, D, BLOCK_D, WIDE, PRECISION, COMPILED,
    )  # fmt: skip
    acc = tl.interleave(acc_even, acc_odd)
    if not PER_HEAD:
        acc *= tl.load(scales + 1)
    return acc, top, total
