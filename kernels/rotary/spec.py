"""Rotary embedding and cache write: its cases, and how near the kernel has to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from workbench.kernels.attention import fp8
from workbench.kernels.attention.reference import Layout, make_places, write_kv
from workbench.kernels.rotary import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
REASON = (
    "the norm, its product with the weight and the turned pair are each rounded once (2^-9 at most in "
    "bfloat16, a third of it in the mean); values are copied"
)
TOLERANCE_FP8 = {torch.float32: 1e-3, torch.bfloat16: 2e-2, torch.float16: 8e-3}
REASON_FP8 = (
    "as above; a key that is rounded to 16 bits, as the kernel's are, and then to eight goes the other way "
    "where it lies as near the middle as that: one of 64 in bfloat16 (2^-9 of 2^-4, either side), by a tenth "
    "of it. Values are exact, and tests/kernels/test_fp8.py holds the second rounding to the bit"
)
POSITIONS = 512  # rows of cos_sin


class Shape(NamedTuple):
    """Tokens and heads of a case."""

    tokens: int
    heads: int
    kv_heads: int
    dim: int
    norm: bool
    block_size: int = 16
    keep: bool = False
    stored: torch.dtype | None = None  # an FP8 format; None: as qkv
    per_head: bool = False  # and scales of each token's head

    @property
    def num_blocks(self) -> int:
        return 2 + -(-self.tokens // self.block_size)


SMALL = [
    Shape(1, 4, 2, 64, True),
    Shape(5, 16, 8, 128, True),
    Shape(3, 3, 1, 80, False, 8),
    Shape(7, 2, 2, 96, True, 32),
    Shape(2, 4, 1, 256, False),
    Shape(5, 4, 2, 64, True, keep=True),
]
LARGE = [Shape(tokens, 16, 8, 128, True) for tokens in (1, 256, 1024, 8192)]
LARGE += [Shape(tokens, 32, 8, 128, False) for tokens in (1, 256, 8192)]


def _make(shape: Shape, dtype: torch.dtype) -> Callable[[torch.Generator, torch.device], Inputs]:
    tokens, heads, kv_heads, dim, norm, block_size, keep, *_ = shape

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device).to(dtype)

        angles = torch.rand((POSITIONS, dim // 2), generator=generator, device=device) * 6.28
        free = torch.randperm((shape.num_blocks - 1) * block_size, generator=generator, device=device)
        return {
            "qkv": draw(tokens, (heads + 2 * kv_heads) * dim),
            "positions": torch.randint(POSITIONS, (tokens,), generator=generator, device=device),
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=1),
            "cache": draw(2, kv_heads, shape.num_blocks, block_size, dim),
            "slots": block_size + free[:tokens],
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": dim,
            "q_norm": 1 + 0.1 * draw(dim) if norm else None,
            "k_norm": 1 + 0.1 * draw(dim) if norm else None,
            "keep": keep,
        } | _fp8_inputs(shape, device)

    return make


def _fp8_inputs(shape: Shape, device: torch.device) -> Inputs:
    """A cache of ones, as bytes: the reference runs on float64, and has to round to eight bits itself."""
    if shape.stored is None:
        return {}
    sizes = (2, shape.kv_heads, shape.num_blocks, shape.block_size, shape.dim)
    cache = torch.ones(sizes, device=device).to(shape.stored)
    scales = torch.tensor([0.013, 0.25], device=device)
    if shape.per_head:
        scales = torch.full(sizes[:-1], fp8.BIAS, dtype=torch.uint8, device=device)
    return {"cache": cache.view(torch.uint8), "scales": scales, "stored": shape.stored}


def _case(shape: Shape, dtype: torch.dtype, timed: bool) -> Case:
    tokens, heads, kv_heads, dim, norm, keep = *shape[:5], shape.keep
    flags = ("-norm" if norm else "") + ("-keep" if keep else "") + ("-heads" if shape.per_head else "")
    name = f"{tokens}x{heads}/{kv_heads}x{dim}{flags}-{str(dtype).removeprefix('torch.')}"
    numbers = tokens * (heads + 2 * kv_heads) * dim
    kept = 2 * tokens * kv_heads * dim * (dtype.itemsize - (shape.stored or dtype).itemsize)
    moved = (
        2 * numbers * dtype.itemsize - kept + tokens * (dim * 4 + 16)
    )  # a line of cos_sin, position and slot
    return Case(name, _make(shape, dtype), moved, 10 * numbers, timed, dtype)


def _kernel(**inputs: Any) -> Outputs:
    found = (kernel.qk_rotary_write(**inputs), inputs["cache"])
    return (*found, inputs["qkv"]) if inputs["keep"] else found


def _reference(cache: Tensor, slots: Tensor, keep: bool, **inputs: Any) -> Outputs:
    q, k, v = reference.qk_rotary(**inputs)
    _, kv_heads, num_blocks, block_size, _ = cache.shape
    layout = Layout(inputs["num_heads"], kv_heads, num_blocks, block_size, None)
    write_kv(cache, make_places(slots, layout), k, v)
    if not keep:
        return q, cache
    heads = inputs["num_heads"]
    inputs["qkv"].view(len(q), -1, inputs["head_dim"])[:, heads : heads + kv_heads] = k
    return q, cache, inputs["qkv"]


def _kernel_fp8(cache: Tensor, stored: torch.dtype, scales: Tensor, **inputs: Any) -> Outputs:
    found = kernel.qk_rotary_write(cache=cache.view(stored), scales=scales, **inputs)
    return _told(found, cache, stored, scales, inputs)


def _reference_fp8(cache: Tensor, stored: torch.dtype, scales: Tensor, **inputs: Any) -> Outputs:
    slots, keep = inputs.pop("slots"), inputs.pop("keep")
    q, k, v = reference.qk_rotary(**inputs)
    _, kv_heads, num_blocks, block_size, _ = cache.shape
    layout = Layout(inputs["num_heads"], kv_heads, num_blocks, block_size, None)
    lines = write_kv(cache.view(stored), make_places(slots, layout), k, v, scales)
    inputs["keep"] = keep
    if keep:
        heads = inputs["num_heads"]
        inputs["qkv"].view(len(q), -1, inputs["head_dim"])[:, heads:] = lines.view(len(q), 2 * kv_heads, -1)
    return _told(q, cache, stored, scales, inputs)


def _told(
    q: Tensor, cache: Tensor, stored: torch.dtype, scales: Tensor, inputs: Inputs
) -> tuple[Tensor, ...]:
    """The cache as it is read; with scales of its own each."""
    per_head = scales.dtype == torch.uint8
    factor = fp8.head_scales(scales) if per_head else scales.view(2, 1, 1, 1, 1)
    found = (q, cache.view(stored).double() * factor)
    return (*found, inputs["qkv"]) if inputs["keep"] else found


FP8 = [
    Shape(5, 4, 2, 64, True, stored=torch.float8_e4m3fn),
    Shape(7, 4, 1, 80, False, 8, stored=torch.float8_e4m3fn, keep=True),
    Shape(3, 2, 2, 96, True, 32, stored=torch.float8_e5m2),
    Shape(6, 4, 2, 128, True, stored=torch.float8_e4m3fn, per_head=True),
    Shape(9, 2, 1, 80, False, stored=torch.float8_e4m3fn, per_head=True, keep=True),
]
FP8_LARGE = [Shape(n, 32, 8, 128, False, stored=torch.float8_e4m3fn) for n in (1, 32, 8192)]
FP8_LARGE += [Shape(8192, 32, 8, 128, False, stored=torch.float8_e4m3fn, per_head=True, keep=True)]
FP8_CASES = (
    *(_case(shape, dtype, False) for shape in FP8 for dtype in (torch.float32, torch.float16)),
    *(_case(shape, torch.bfloat16, True) for shape in FP8_LARGE),
)
CASES = (
    *(_case(shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)),
    *(_case(shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (
    Spec("qk_rotary_write", _kernel, _reference, CASES, TOLERANCE, REASON),
    Spec("qk_rotary_write_fp8", _kernel_fp8, _reference_fp8, FP8_CASES, TOLERANCE_FP8, REASON_FP8),
)
