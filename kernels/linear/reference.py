"""A projection with what stands before and after it, in torch: what the kernel for few rows is held to."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from workbench.kernels.rms_norm.reference import rms_norm
from workbench.kernels.silu_mul.reference import silu_mul


class Projected(NamedTuple):
    """The product, and the residual stream it was taken from."""

    y: Tensor  # [T, out], gated [T, out / 2]
    residual: Tensor | None  # [T, in]; x + residual where a residual was given


def few_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    gated: bool = False,
) -> Projected:
    """Add the residual stream, norm the sum, project it, gate the halves: each where asked for.

    Args:
        x: [T, in].
        weight: [out, in]; gated: the gate's rows, then as many of the other half.
        bias: [out].
        residual: [T, in], the stream x is added to; the sum is returned.
        norm: [in], the weight of an RMS norm before the product.
        eps: added to the mean square.
        gated: return silu(first half) * second half.
    """
    total = None if residual is None else x + residual
    hidden = x if total is None else total
    hidden = hidden if norm is None else rms_norm(hidden, norm, eps)
    y = F.linear(hidden, weight, bias)
    return Projected(silu_mul(y) if gated else y, total)
