"""SiLU × up: its cases, and how near the kernel has to come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from workbench.kernels.silu_mul import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
REASON = "silu and the product are each rounded once, 2^-9 at most in bfloat16 and a third of it in the mean"
SMALL = [(1, 96), (5, 768), (3, 3072)]
LARGE = [(256, 3072), (1024, 3072), (8192, 3072), (256, 14336), (8192, 14336)]


def _make(rows: int, n: int, dtype: torch.dtype) -> Callable[[torch.Generator, torch.device], Inputs]:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return {"gate_up": torch.randn((rows, 2 * n), generator=generator, device=device).to(dtype)}

    return make


def _case(rows: int, n: int, dtype: torch.dtype, timed: bool) -> Case:
    name = f"{rows}x{n}-{str(dtype).removeprefix('torch.')}"
    return Case(name, _make(rows, n, dtype), 3 * rows * n * dtype.itemsize, 5 * rows * n, timed, dtype)


def _kernel(gate_up: Tensor) -> Outputs:
    return (kernel.silu_mul(gate_up),)


def _reference(gate_up: Tensor) -> Outputs:
    return (reference.silu_mul(gate_up),)


CASES = (
    *(_case(*shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)),
    *(_case(*shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (Spec("silu_mul", _kernel, _reference, CASES, TOLERANCE, REASON),)
