"""Few-row projections: their cases, and how near the kernel has to come."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from workbench.kernels.linear import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
REASON = (
    "the sum of streams, the norm, its product with the weight, the projection, silu and its product each "
    "round once: six times 2^-9 at most in bfloat16, a third of it in the mean; float32 adds up to 14,336 "
    "products in another order"
)


class Shape(NamedTuple):
    """A projection, and what is around it."""

    name: str
    tokens: int
    n_out: int  # rows of the weights: twice the results where gated
    n_in: int
    norm: bool = False
    residual: bool = False
    gated: bool = False
    bias: bool = False


SMALL = [
    Shape("plain", 1, 64, 128),
    Shape("odd", 3, 41, 100, bias=True),
    Shape("norm", 2, 48, 320, norm=True),
    Shape("stream", 5, 64, 256, norm=True, residual=True),
    Shape("gated", 1, 96, 256, norm=True, residual=True, gated=True),
    Shape("all", 7, 72, 192, norm=True, residual=True, gated=True, bias=True),
    Shape("sixteen", 16, 80, 1024, bias=True),
    Shape("long", 4, 16, 3072),
]
LAYERS = {  # (out, in) of qkv, o, gate-up and down; the rows at which `few` sends them here
    "qwen3-0.6b": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (1, 2, 4, 16)),
    "llama-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (1,)),
}
HEADS = [
    Shape("qwen3-0.6b-head", 1, 151936, 1024, True, True),
    Shape("llama-8b-head", 1, 128256, 4096, True, True),
]
LARGE = HEADS + [
    shape
    for model, (qkv, o, gate_up, down, rows) in LAYERS.items()
    for tokens in rows
    for shape in (
        Shape(f"{model}-qkv", tokens, *qkv, norm=True, residual=True),
        Shape(f"{model}-o", tokens, *o),
        Shape(f"{model}-gate-up", tokens, *gate_up, norm=True, residual=True, gated=True),
        Shape(f"{model}-down", tokens, *down),
    )
]


def _make(shape: Shape, dtype: torch.dtype) -> Any:
    tokens, n_out, n_in = shape.tokens, shape.n_out, shape.n_in

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device).to(dtype)

        return {
            "x": draw(tokens, n_in),
            "weight": draw(n_out, n_in) * n_in**-0.5,
            "bias": draw(n_out) if shape.bias else None,
            "residual": draw(tokens, n_in) if shape.residual else None,
            "norm": 1 + 0.1 * draw(n_in) if shape.norm else None,
            "gated": shape.gated,
        }

    return make


def _case(shape: Shape, dtype: torch.dtype, timed: bool) -> Case:
    _, tokens, n_out, n_in, norm, residual, gated, bias = shape
    results = n_out // 2 if gated else n_out
    streams = 3 if residual else 1  # x; the stream it is added to, and their sum
    numbers = n_out * n_in + tokens * (streams * n_in + results) + norm * n_in + bias * n_out
    name = f"{shape.name}-{tokens}-{str(dtype).removeprefix('torch.')}"
    flops = 2 * tokens * n_out * n_in
    return Case(name, _make(shape, dtype), numbers * dtype.itemsize, flops, timed, dtype)


def _kernel(**inputs: Any) -> Outputs:
    return tuple(output for output in kernel.few_rows(**inputs) if output is not None)


def _reference(**inputs: Any) -> Outputs:
    return tuple(output for output in reference.few_rows(**inputs) if output is not None)


CASES = (
    *(_case(shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)),
    *(_case(shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (Spec("few_rows", _kernel, _reference, CASES, TOLERANCE, REASON),)
