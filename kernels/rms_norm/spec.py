"""RMS norm: its cases, and how near the kernel has to come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from workbench.kernels.rms_norm import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
REASON = (
    "the sum (2^-9 at most in bfloat16), the norm and its product with the weight are each rounded once, "
    "rms 0.3 of that bound each; float32 adds squares in another order"
)
SMALL = [(1, 64), (3, 100), (5, 1024), (2, 4096)]
LARGE = [(1, 1024), (256, 1024), (1024, 1024), (8192, 1024), (256, 4096), (8192, 4096)]


def _make(rows: int, n: int, dtype: torch.dtype, names: tuple[str, ...]) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        return {**{name: draw(rows, n) for name in names}, "weight": 1 + 0.1 * draw(n), "eps": 1e-6}

    return make


def _cases(names: tuple[str, ...]) -> tuple[Case, ...]:
    """`names`: the inputs of [rows, n]; as many outputs as inputs."""

    def case(rows: int, n: int, dtype: torch.dtype, timed: bool) -> Case:
        numbers = (2 * len(names) * rows + 1) * n
        name = f"{rows}x{n}-{str(dtype).removeprefix('torch.')}"
        return Case(name, _make(rows, n, dtype, names), numbers * dtype.itemsize, 5 * rows * n, timed, dtype)

    small = [case(*shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)]
    return (*small, *(case(*shape, torch.bfloat16, True) for shape in LARGE))


def _norm(**inputs: Any) -> Outputs:
    return (kernel.rms_norm(**inputs),)


def _norm_reference(**inputs: Any) -> Outputs:
    return (reference.rms_norm(**inputs),)


SPECS = (
    Spec("rms_norm", _norm, _norm_reference, _cases(("x",)), TOLERANCE, REASON),
    Spec(
        "add_rms_norm",
        kernel.add_rms_norm,
        reference.add_rms_norm,
        _cases(("x", "residual")),
        TOLERANCE,
        REASON,
    ),
)
