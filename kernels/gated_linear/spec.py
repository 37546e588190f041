"""Gated projections of a batch of decodes: their cases, and how near the kernel has to come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from workbench.kernels.gated_linear import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
REASON = (
    "both products, silu and its product each round once: four times 2^-9 at most in bfloat16, a third of it "
    "in the mean, and a few large numbers are most of a row"
)

SMALL = [(1, 64, 128), (17, 128, 256), (64, 64, 384), (65, 128, 128), (128, 192, 256)]
LARGE = [(16, 3072, 1024), (64, 3072, 1024), (64, 14336, 4096), (128, 14336, 4096)]


def _make(tokens: int, n: int, n_in: int, dtype: torch.dtype) -> Callable[..., Inputs]:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        return {"x": draw(tokens, n_in).to(dtype), "weight": (draw(2 * n, n_in) * n_in**-0.5).to(dtype)}

    return make


def _case(tokens: int, n: int, n_in: int, dtype: torch.dtype, timed: bool) -> Case:
    numbers = 2 * n * n_in + tokens * (n_in + n)
    name = f"{tokens}x{n}x{n_in}-{str(dtype).removeprefix('torch.')}"
    make = _make(tokens, n, n_in, dtype)
    return Case(name, make, numbers * dtype.itemsize, 4 * tokens * n * n_in, timed, dtype)


def _kernel(x: Tensor, weight: Tensor) -> Outputs:
    return (kernel.gated_linear(x, weight),)


def _reference(x: Tensor, weight: Tensor) -> Outputs:
    return (reference.gated_linear(x, weight),)


CASES = (
    *(_case(*shape, torch.float16, False) for shape in SMALL),
    *(_case(*shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (Spec("gated_linear", _kernel, _reference, CASES, TOLERANCE, REASON),)
