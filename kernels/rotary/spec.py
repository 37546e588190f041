"""Rotary embedding and cache write: its cases, and how near the kernel has to come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from workbench.kernels.attention.reference import Layout, make_places, write_kv
from workbench.kernels.rotary import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
REASON = (
    "the norm, its product with the weight and the turned pair are each rounded once (2^-9 at most in "
    "bfloat16, a third of it in the mean); values are copied"
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
    tokens, heads, kv_heads, dim, norm, block_size, keep = shape

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
        }

    return make


def _case(shape: Shape, dtype: torch.dtype, timed: bool) -> Case:
    tokens, heads, kv_heads, dim, norm, _, keep = shape
    flags = ("-norm" if norm else "") + ("-keep" if keep else "")
    name = f"{tokens}x{heads}/{kv_heads}x{dim}{flags}-{str(dtype).removeprefix('torch.')}"
    numbers = tokens * (heads + 2 * kv_heads) * dim
    moved = 2 * numbers * dtype.itemsize + tokens * (dim * 4 + 16)  # a line of cos_sin, position and slot
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


CASES = (
    *(_case(shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)),
    *(_case(shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (Spec("qk_rotary_write", _kernel, _reference, CASES, TOLERANCE, REASON),)
