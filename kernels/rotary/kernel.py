"""Norm and turn the heads of q and k, write k and v into the paged cache: one launch, in Triton.

Meaning and roundings are the reference's: `qk_rotary`, then attention's `write_kv`. Knows nothing of layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.attention import fp8
from workbench.kernels.launch import early

ABOVE_LARGEST, BIAS, MOST = map(tl.constexpr, (fp8.ABOVE_LARGEST, fp8.BIAS, fp8.MOST))


@triton.jit
def _exponents(largest, OF_LARGEST: tl.constexpr):
    """fp8.exponents of float32 numbers >= 0."""
    found = ((largest.to(tl.int32, bitcast=True) + ABOVE_LARGEST) >> 23) - BIAS - OF_LARGEST
    return tl.minimum(tl.maximum(found, 1 - BIAS), MOST)


@triton.jit
def _on_grid(x, KIND: tl.constexpr):
    """float32 numbers rounded to those of an eight-bit format, to the nearest, ties to even.

    For the interpreter, whose own cast rounds some the other way; a GPU has an instruction.
    """
    MANTISSA: tl.constexpr = 3 if tl.float8e4nv == KIND else 2
    LEAST: tl.constexpr = 121 if tl.float8e4nv == KIND else 113  # exponent of the least normal number, biased
    bits = x.to(tl.int32, bitcast=True)
    step = tl.maximum(bits & 0x7F800000, LEAST << 23) + ((23 - MANTISSA) << 23)
    step = step.to(tl.float32, bitcast=True)  # adding it leaves no bits below the grid's
    rounded = (tl.abs(x) + step) - step
    return tl.where(bits < 0, -rounded, rounded)


@triton.jit
def _stored(x, scale, LARGEST: tl.constexpr, KIND: tl.constexpr, COMPILED: tl.constexpr):
    """fp8.quantise of float32 numbers."""
    scaled = tl.div_rn(x, scale + tl.zeros_like(x))
    saturated = tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST)
    scaled = tl.where(scaled == scaled, saturated, scaled)
    if not COMPILED:
        scaled = _on_grid(scaled, KIND)
    return scaled.to(KIND)


@triton.jit
def _qk_rotary_write(
    qkv, positions, cos_sin, cache, scales, slots, q_norm, k_norm, q, plane, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, KEEP: tl.constexpr, FP8: tl.constexpr, LARGEST: tl.constexpr,
    OF_LARGEST: tl.constexpr, COMPILED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # FP8: 0: the cache has qkv's dtype; 1: eight bits, scales of all keys and of all values; 2: of each head
    # heads of a token: [0, HEADS) q, [HEADS, HEADS + KV_HEADS) k, the rest v
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    i = tl.arange(0, HALF)
    pair = (i < DIM // 2)[None, :]
    is_q = (head < HEADS)[:, None]
    is_v = (head >= HEADS + KV_HEADS)[:, None]
    inside = (head < HEADS + 2 * KV_HEADS)[:, None] & pair
    at = (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM + i[None, :]
    if NORM:
        scale = tl.load(q_norm + i[None, :], mask=is_q & pair, other=0.0)
        scale += tl.load(k_norm + i[None, :], mask=~is_q & pair, other=0.0)
        second_scale = tl.load(q_norm + DIM // 2 + i[None, :], mask=is_q & pair, other=0.0)
        second_scale += tl.load(k_norm + DIM // 2 + i[None, :], mask=~is_q & pair, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    position = tl.load(positions + token)
    slot = tl.load(slots + token)
    first = tl.load(qkv + at, mask=inside, other=0.0)
    second = tl.load(qkv + at + DIM // 2, mask=inside, other=0.0)
    cos = tl.load(cos_sin + position * DIM + i, mask=i < DIM // 2, other=0.0)[None, :]
    sin = tl.load(cos_sin + position * DIM + DIM // 2 + i, mask=i < DIM // 2, other=0.0)[None, :]
    x = first.to(tl.float32)
    y = second.to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(x * x + y * y, axis=1) / DIM + eps)[:, None]
        x = ((x * factor).to(first.dtype) * scale).to(tl.float32)
        y = ((y * factor).to(first.dtype) * second_scale).to(tl.float32)
    turned = tl.where(is_v, first, (x * cos - y * sin).to(first.dtype))
    second_turned = tl.where(is_v, second, (y * cos + x * sin).to(first.dtype))
    q_at = q + (token * HEADS + head)[:, None] * DIM + i[None, :]
    tl.store(q_at, turned, mask=inside & is_q)
    tl.store(q_at + DIM // 2, second_turned, mask=inside & is_q)
    # planes of the cache: heads of k, then of v, in the order they have in qkv
    kv_head = (head - HEADS).to(tl.int64)
    kv_at = cache + kv_head[:, None] * plane + slot * DIM + i[None, :]
    kept = ~is_q & ~is_v
    stored, second_stored = turned, second_turned
    if FP8 > 0:
        x, y = turned.to(tl.float32), second_turned.to(tl.float32)
        if FP8 == 1:
            scale = tl.where(is_v, tl.load(scales + 1), tl.load(scales))
        else:
            magnitudes = tl.maximum(tl.where(x == x, tl.abs(x), 0.0), tl.where(y == y, tl.abs(y), 0.0))
            exponent = _exponents(tl.max(tl.where(pair, magnitudes, 0.0), axis=1), OF_LARGEST)
            scale = ((exponent + BIAS) << 23).to(tl.float32, bitcast=True)[:, None]
            mine = (head >= HEADS) & (head < HEADS + 2 * KV_HEADS)
            tl.store(scales + kv_head * (plane // DIM) + slot, (exponent + BIAS).to(tl.uint8), mask=mine)
        stored = _stored(x, scale, LARGEST, cache.dtype.element_ty, COMPILED)
        second_stored = _stored(y, scale, LARGEST, cache.dtype.element_ty, COMPILED)
        if KEEP:
            kept = ~is_q
            turned = (stored.to(tl.float32) * scale).to(first.dtype)
            second_turned = (second_stored.to(tl.float32) * scale).to(first.dtype)
    tl.store(kv_at, stored.to(cache.dtype.element_ty), mask=inside & ~is_q)
    tl.store(kv_at + DIM // 2, second_stored.to(cache.dtype.element_ty), mask=inside & ~is_q)
    if KEEP:
        # where they came from, which nobody but this program reads
        tl.store(qkv + at, turned, mask=inside & kept)
        tl.store(qkv + at + DIM // 2, second_turned, mask=inside & kept)


def qk_rotary_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache: Tensor,
    slots: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    out: Tensor | None = None,
    keep: bool = False,
    scales: Tensor | None = None,
) -> Tensor:
    """q normed and turned; k, the same, and v written into `cache`, in place.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], contiguous; heads of q, then of k, then of v.
        positions: [T] int64, rows of cos_sin.
        cos_sin: [max_positions, head_dim] float32; cosines of the head_dim / 2 angles, then their sines.
        cache: [2, num_kv_heads, num_blocks, block_size, head_dim], contiguous; keys, then values. With
            scales, FP8: rounded and saturated as fp8.quantise does it.
        slots: [T] int64, block * block_size + offset; two tokens share one only in the null block.
        num_heads: heads of q.
        num_kv_heads: heads of k and of v.
        head_dim: numbers in a head, even.
        q_norm: [head_dim], weight of the RMS norm of every head of q; None: no norm.
        k_norm: [head_dim], the same for k; both or neither.
        eps: of the norms.
        out: [T, num_heads, head_dim]; where to write q.
        keep: also leave k, normed and turned, in its place in qkv; with scales k and v as they will be read.
        scales: of a cache in FP8, as fp8.py has them; those of each token's head are found and written here.

    Returns:
        [T, num_heads, head_dim], dtype of qkv.
    """
    tokens, heads = qkv.shape[0], num_heads + 2 * num_kv_heads
    out = qkv.new_empty((tokens, num_heads, head_dim)) if out is None else out
    half = triton.next_power_of_2(head_dim // 2)
    block = heads_each(tokens, half)
    _qk_rotary_write[(tokens, triton.cdiv(heads, block))](
        qkv, positions, cos_sin, cache, qkv if scales is None else scales, slots,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, out, cache.stride(1), eps,
        HEADS=num_heads, KV_HEADS=num_kv_heads, DIM=head_dim, HALF=half, BLOCK=block,
        NORM=q_norm is not None, KEEP=keep, COMPILED=qkv.is_cuda, **_of_format(cache, scales), num_warps=4,
        **early(qkv.device),
    )  # fmt: skip
    return out


def _of_format(cache: Tensor, scales: Tensor | None) -> dict[str, float]:
    if scales is None:
        return {"FP8": 0, "LARGEST": 0.0, "OF_LARGEST": 0}
    of_largest = fp8.EXPONENT_OF_LARGEST[cache.dtype]
    kind = 2 if scales.dtype == torch.uint8 else 1
    return {"FP8": kind, "LARGEST": fp8.largest(cache.dtype), "OF_LARGEST": of_largest}


def heads_each(tokens: int, half: int) -> int:
    """Heads a program takes: few where programs are few, more where launching them would cost more."""
    return max(1, (256 if tokens < 64 else 1024) // half)
