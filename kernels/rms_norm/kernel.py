"""RMS norm, alone and after a residual addition, in Triton: one pass over memory.

Meaning and roundings are the reference's. Knows nothing of layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.launch import early
from workbench.kernels.rms_norm.reference import Normed


@triton.jit
def _rms_norm(
    x, residual, weight, y, total, n, eps, ADD: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < n
    at = tl.program_id(0).to(tl.int64) * n + column
    w = tl.load(weight + column, mask=inside, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    h = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        # the sum is rounded before it is normed, as it is where the two are separate operations
        h = (h.to(tl.float32) + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)).to(h.dtype)
        tl.store(total + at, h, mask=inside)
    wide = h.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide) / n + eps)
    tl.store(y + at, wide.to(w.dtype) * w, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension.

    Args:
        x: [..., n], contiguous; float32, bfloat16 or float16.
        weight: [n], dtype of x.
        eps: added to the mean square.
        out: [..., n]; where to write; may be x.
    """
    out = torch.empty_like(x) if out is None else out
    _launch(x, x, weight, out, out, eps, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Normed:
    """Add `x` to the residual stream and norm the sum; both results are new tensors.

    Args:
        x: [..., n], contiguous; what a block adds to the stream.
        residual: [..., n], contiguous; the stream, dtype of x.
        weight: [n], dtype of x.
        eps: added to the mean square.
    """
    y, total = torch.empty_like(x), torch.empty_like(x)
    _launch(x, residual, weight, y, total, eps, add=True)
    return Normed(y, total)


def _launch(
    x: Tensor, residual: Tensor, weight: Tensor, y: Tensor, total: Tensor, eps: float, add: bool
) -> None:
    n = x.shape[-1]
    num_rows = x.numel() // n
    block = triton.next_power_of_2(n)
    _rms_norm[(num_rows,)](
        x, residual, weight, y, total, n, eps,
        ADD=add, BLOCK=block, num_warps=warps(block), **early(x.device),
    )  # fmt: skip


def warps(block: int) -> int:
    """Warps of a row: 16 numbers a thread, at most 8 warps."""
    return max(1, min(8, block // 512))
