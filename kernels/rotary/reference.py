"""Split qkv, norm the heads of q and k where the model wants it, turn them by their positions: in torch.

What a CPU runs and what the kernel is held to. Half-split layout: the first half of a head pairs with its
second half (Su et al. 2021, arXiv:2104.09864, in the ordering of the Llama checkpoints). Inputs are never
written to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from workbench.kernels.rms_norm.reference import rms_norm


class Heads(NamedTuple):
    """The three parts of qkv, ready for attention."""

    q: Tensor  # [T, num_heads, head_dim]
    k: Tensor  # [T, num_kv_heads, head_dim]
    v: Tensor  # [T, num_kv_heads, head_dim]; a view of qkv


def qk_rotary(
    qkv: Tensor,
    positions: Tensor | None,
    cos_sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Heads:
    """q and k normed and turned, v as it is.

    Args:
        qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim]; heads of q, then of k, then of v.
        positions: [T] int64, rows of cos_sin; None when cos_sin was gathered already, once for all layers.
        cos_sin: [max_positions, head_dim] or, gathered, [T, head_dim]; float32; cosines of the head_dim / 2
            angles, then their sines, both with the attention scaling in them.
        num_heads: heads of q.
        num_kv_heads: heads of k and of v.
        head_dim: numbers in a head, even.
        q_norm: [head_dim], weight of the RMS norm of every head of q; None: no norm.
        k_norm: [head_dim], the same for k; both or neither.
        eps: of the norms.

    Returns:
        Heads in the dtype of qkv; the products are taken in float32.
    """
    if positions is not None:
        cos_sin = cos_sin.index_select(0, positions)
    turned = num_heads + num_kv_heads
    heads = qkv.view(-1, turned + num_kv_heads, head_dim)
    qk = heads.narrow(1, 0, turned)
    if q_norm is not None and k_norm is not None:
        weight = torch.cat((q_norm.expand(num_heads, -1), k_norm.expand(num_kv_heads, -1)))
        qk = rms_norm(qk, weight, eps)  # one norm over all heads, each with its own weight
    qk = _turn(qk, cos_sin)
    v = heads.narrow(1, turned, num_kv_heads)
    return Heads(qk.narrow(1, 0, num_heads), qk.narrow(1, num_heads, num_kv_heads), v)


def _turn(x: Tensor, cos_sin: Tensor) -> Tensor:
    """[T, heads, head_dim] with each pair (x1, x2) = (x[i], x[i + head_dim / 2]) turned by its angle.

    Three passes over memory: (x1, x2) · cos in one, then − x2 · sin and + x1 · sin added in place.
    """
    num_tokens, num_heads, head_dim = x.shape
    pairs = x.view(num_tokens, num_heads, 2, head_dim // 2)
    cos, sin = cos_sin.view(num_tokens, 1, 2, head_dim // 2).unbind(2)  # each [T, 1, head_dim / 2]
    out = pairs * cos.unsqueeze(1)
    first, second = pairs.unbind(2)
    turned_first, turned_second = out.unbind(2)
    turned_first.addcmul_(second, sin, value=-1)
    turned_second.addcmul_(first, sin)
    return out.view(x.shape).to(x.dtype)
