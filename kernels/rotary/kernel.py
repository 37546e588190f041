"""Norm and turn the heads of q and k, write k and v into the paged cache: one launch, in Triton.

Meaning and roundings are the reference's: `qk_rotary`, then attention's `write_kv`. Knows nothing of layers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.launch import early


@triton.jit
def _qk_rotary_write(
    qkv, positions, cos_sin, cache, slots, q_norm, k_norm, q, plane, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, KEEP: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
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
    kv_at = cache + (head - HEADS).to(tl.int64)[:, None] * plane + slot * DIM + i[None, :]
    tl.store(kv_at, turned.to(cache.dtype.element_ty), mask=inside & ~is_q)
    tl.store(kv_at + DIM // 2, second_turned.to(cache.dtype.element_ty), mask=inside & ~is_q)
    if KEEP:
        # where they came from, which nobody but this program reads
        is_k = ~is_q & ~is_v
        tl.store(qkv + at, turned, mask=inside & is_k)
        tl.store(qkv + at + DIM // 2, second_turned, mask=inside & is_k)


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
) -> Tensor:
    """q normed and turned; k, the same, and v written into `cache`, in place.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], contiguous; heads of q, then of k, then of v.
        positions: [T] int64, rows of cos_sin.
        cos_sin: [max_positions, head_dim] float32; cosines of the head_dim / 2 angles, then their sines.
        cache: [2, num_kv_heads, num_blocks, block_size, head_dim], contiguous; keys, then values.
        slots: [T] int64, block * block_size + offset; two tokens share one only in the null block.
        num_heads: heads of q.
        num_kv_heads: heads of k and of v.
        head_dim: numbers in a head, even.
        q_norm: [head_dim], weight of the RMS norm of every head of q; None: no norm.
        k_norm: [head_dim], the same for k; both or neither.
        eps: of the norms.
        out: [T, num_heads, head_dim]; where to write q.
        keep: also leave k, normed and turned, in its place in qkv.

    Returns:
        [T, num_heads, head_dim], dtype of qkv.
    """
    tokens, heads = qkv.shape[0], num_heads + 2 * num_kv_heads
    out = qkv.new_empty((tokens, num_heads, head_dim)) if out is None else out
    half = triton.next_power_of_2(head_dim // 2)
    block = heads_each(tokens, half)
    _qk_rotary_write[(tokens, triton.cdiv(heads, block))](
        qkv, positions, cos_sin, cache, slots,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm, out, cache.stride(1), eps,
        HEADS=num_heads, KV_HEADS=num_kv_heads, DIM=head_dim, HALF=half, BLOCK=block,
        NORM=q_norm is not None, KEEP=keep, num_warps=4, **early(qkv.device),
    )  # fmt: skip
    return out


def heads_each(tokens: int, half: int) -> int:
    """Heads a program takes: few where programs are few, more where launching them would cost more."""
    return max(1, (256 if tokens < 64 else 1024) // half)
