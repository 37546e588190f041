"""RMS norm, alone and after a residual addition, in Triton: one program a row, one pass over memory.

Meaning and roundings are the reference's. Knows nothing of layers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from workbench.kernels.rms_norm.reference import Normed


@triton.jit
def _rms_norm(x, residual, weight, y, total, n, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n
    at = tl.arange(0, BLOCK)
    inside = at < n
    wide = tl.load(x + row + at, mask=inside, other=0.0)
    if ADD:
        # the sum is rounded before it is normed, as it is where the two are separate operations
        other = tl.load(residual + row + at, mask=inside, other=0.0)
        wide = (wide.to(tl.float32) + other.to(tl.float32)).to(y.dtype.element_ty)
        tl.store(total + row + at, wide, mask=inside)
    wide = wide.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide) / n + eps)
    w = tl.load(weight + at, mask=inside, other=0.0)
    tl.store(y + row + at, (wide * scale).to(w.dtype) * w, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension.

    Args:
        x: [..., n], contiguous; float32, bfloat16 or float16.
        weight: [n], dtype of x.
        eps: added to the mean square.
        out: [..., n]; where to write; may be x.
    """
    n = x.shape[-1]
    out = torch.empty_like(x) if out is None else out
    block = triton.next_power_of_2(n)
    _rms_norm[(x.numel() // n,)](
        x, x, weight, out, out, n, eps, ADD=False, BLOCK=block, num_warps=warps(block)
    )
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Normed:
    """Add `x` to the residual stream and norm the sum; both results are new tensors.

    Args:
        x: [..., n], contiguous; what a block adds to the stream.
        residual: [..., n], contiguous; the stream, dtype of x.
        weight: [n], dtype of x.
        eps: added to the mean square.
    """
    n = x.shape[-1]
    y, total = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(n)
    _rms_norm[(x.numel() // n,)](
        x, residual, weight, y, total, n, eps, ADD=True, BLOCK=block, num_warps=warps(block)
    )
    return Normed(y, total)


def warps(block: int) -> int:
    """Warps a row: 16 bytes a thread and load, at most 16."""
    return max(1, min(16, block // 256))
