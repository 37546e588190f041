"""Products with adapters: their cases, and how near the kernel has to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from workbench.kernels.low_rank import kernel, reference
from workbench.kernels.low_rank.stack import (
    FIELDS,
    MODULES,
    Module,
    Stack,
    cut,
    most_blocks,
    padded,
    upload,
    words_of,
    write,
)
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
REASON = (
    "what the shrink yields and the sum each round once: twice 2^-9 at most in bfloat16, a third of it in "
    "the mean; float32 adds up to 14,336 products in another order"
)
PRODUCTS = 2  # of the stack; the other one's weights must not be read


class Shape(NamedTuple):
    """A product, and who is in the step."""

    name: str
    tokens: int
    n_in: int
    n_outs: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]  # of each slot's modules; 0: the adapter leaves the module alone
    base: float = 0.25  # part of the tokens that have no adapter
    gathers: bool = False


SMALL = [
    Shape("one", 5, 64, (48,), ((8,),)),
    Shape("alone", 1, 160, (32,), ((1,),), base=0.0),
    Shape("merged", 23, 128, (64, 32, 32), ((8, 16, 3), (0, 4, 0), (64, 0, 20))),
    Shape("absent", 19, 96, (40, 40), ((0, 0), (5, 7))),
    Shape("many", 40, 48, (33,), tuple((1 + slot,) for slot in range(12))),
    Shape("nobody", 4, 64, (32,), ((8,),), base=1.0),
    Shape("embedding", 21, 77, (48,), ((4,), (17,)), gathers=True),
    Shape("blocks of 64", 1030, 32, (16,), ((2,), (3,)), base=0.9),
]
LARGE = [
    Shape(
        f"llama-8b-{name}-{tokens}-{adapters}", tokens, n_in, n_outs, ((16,) * len(n_outs),) * adapters, 0.0
    )
    for name, n_in, n_outs in (("qkv", 4096, (4096, 1024, 1024)), ("o", 4096, (4096,)))
    for tokens in (64, 256, 4096)
    for adapters in (1, 8, 32)
]


def _make(shape: Shape, dtype: torch.dtype) -> Callable[..., Inputs]:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def draw(*sizes: int) -> Tensor:
            return torch.randn(sizes, generator=generator, device=device)

        who = torch.rand(shape.tokens, generator=generator, device=device)
        slots = torch.randint(len(shape.ranks), (shape.tokens,), generator=generator, device=device)
        chosen = torch.where(who < shape.base, -1, slots).cpu().numpy()
        if shape.gathers:
            x = torch.randint(shape.n_in, (shape.tokens,), generator=generator, device=device)
        else:
            x = draw(shape.tokens, shape.n_in).to(dtype)
        size = kernel.block_size(shape.tokens)
        blocks = most_blocks(shape.tokens, size, len(shape.ranks))
        ranks = MODULES * padded(max(max(rank) for rank in shape.ranks))
        return {
            "x": x,
            "y": draw(shape.tokens, sum(shape.n_outs)).to(dtype),
            "stack": _stack(shape, dtype, draw, device),
            "product": 1,
            "n_outs": shape.n_outs,
            "segments": upload(cut(chosen, size), device, shape.tokens, blocks),
            "space": kernel.make_space(shape.tokens, ranks, device),
        }

    return make


def _stack(shape: Shape, dtype: torch.dtype, draw: Callable[..., Tensor], device: torch.device) -> Stack:
    most = max(max(ranks) for ranks in shape.ranks)
    words = 64 + words_of(most, shape.n_in, shape.n_outs)
    memory = draw(len(shape.ranks), words).to(dtype)  # what is not written must not be read
    table = np.zeros((len(shape.ranks), PRODUCTS, FIELDS), np.int32)
    for slot, ranks in enumerate(shape.ranks):
        modules = [
            Module(
                number,
                (draw(rank, shape.n_in) * (1 if shape.gathers else shape.n_in**-0.5)).to(dtype),
                (draw(n_out, rank) * rank**-0.5).to(dtype),
            )
            for number, (rank, n_out) in enumerate(zip(ranks, shape.n_outs, strict=True))
            if rank
        ]
        if modules:
            write(memory[slot], table[slot, 1], 48, modules, gathers=shape.gathers)
    return Stack(memory, torch.from_numpy(table).to(device))


def _case(shape: Shape, dtype: torch.dtype, timed: bool) -> Case:
    used = min(len(shape.ranks), shape.tokens)
    weights = sum(
        sum(ranks) * shape.n_in + sum(r * n for r, n in zip(ranks, shape.n_outs, strict=True))
        for ranks in shape.ranks[:used]
    )
    numbers = weights + shape.tokens * (shape.n_in + 2 * sum(shape.n_outs))
    per_token = weights // max(1, used)
    name = f"{shape.name}-{str(dtype).removeprefix('torch.')}"
    make = _make(shape, dtype)
    return Case(name, make, numbers * dtype.itemsize, 2 * shape.tokens * per_token, timed, dtype)


def _kernel(**inputs: Any) -> Outputs:
    return (kernel.add_low_rank(**inputs),)


def _reference(
    x: Tensor, y: Tensor, stack: Stack, product: int, n_outs: Sequence[int], segments: Any, space: Tensor
) -> Outputs:
    return (reference.add_low_rank(x, y, stack, product, n_outs, segments),)


CASES = (
    *(_case(shape, dtype, False) for shape in SMALL for dtype in (torch.float32, torch.float16)),
    *(_case(shape, torch.bfloat16, True) for shape in LARGE),
)
SPECS = (Spec("add_low_rank", _kernel, _reference, CASES, TOLERANCE, REASON),)
