"""SiLU of one half times the other half, in Triton. Meaning and roundings are the reference's."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.launch import early

BLOCK = 2048  # numbers a program


@triton.jit
def silu_times(gate, up, dtype: tl.constexpr):
    """silu(gate) * up in float32, rounded to dtype where two separate operations would round."""
    gate = gate.to(dtype).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return (gate * up.to(dtype).to(tl.float32)).to(dtype)


@triton.jit
def _silu_mul(gate_up, out, n, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < n
    gate = tl.load(gate_up + 2 * row * n + column, mask=inside, other=0.0)
    up = tl.load(gate_up + (2 * row + 1) * n + column, mask=inside, other=0.0)
    tl.store(out + row * n + column, silu_times(gate, up, gate.dtype), mask=inside)


def silu_mul(gate_up: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up, rounded to the dtype after each of the two.

    Args:
        gate_up: [..., 2 * n], contiguous; gate in the first half of the last dimension, up in the second.
        out: [..., n]; where to write.

    Returns:
        [..., n], dtype of gate_up.
    """
    *rows, n = (*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    out = gate_up.new_empty((*rows, n)) if out is None else out
    _silu_mul[(out.numel() // n, triton.cdiv(n, BLOCK))](
        gate_up, out, n, BLOCK=BLOCK, num_warps=8, **early(gate_up.device)
    )
    return out
