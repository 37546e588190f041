"""Logprobs: cases, and how near the kernel has to come."""

from __future__ import annotations

from typing import Any

import torch
from workbench.kernels.logprobs import kernel, reference
from workbench.kernels.spec import Case, Inputs, Outputs, Spec


def _make(rows: int, vocab: int, k: int, dtype: torch.dtype) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        logits = torch.randn((rows, vocab), generator=generator, device=device)
        # The best tokens apart from each other: of equal ones, either side may list the other first.
        order = torch.randn((rows, vocab), generator=generator, device=device).topk(2 * k + 1, dim=-1).indices
        best = 5 + 0.25 * torch.arange(2 * k + 1, device=device, dtype=torch.float32)
        logits = logits.scatter_(-1, order, best.expand(rows, -1)).to(dtype)
        chosen = torch.randint(0, vocab, (rows,), generator=generator, device=device)
        chosen[::2] = order[::2, -1]  # and not only tokens far down
        return {"logits": logits, "chosen": chosen, "k": k}

    return make


def _case(rows: int, vocab: int, k: int, dtype: torch.dtype, timed: bool) -> Case:
    size = rows * (vocab * dtype.itemsize + 16 + 8 * k)
    name = f"{rows}x{vocab}-{k}-{str(dtype).removeprefix('torch.')}"
    return Case(name, _make(rows, vocab, k, dtype), size, 4 * rows * vocab, timed, dtype)


def _logprobs(**inputs: Any) -> Outputs:
    return tuple(kernel.logprobs(**inputs))


def _reference(**inputs: Any) -> Outputs:
    return reference.logprobs(**inputs)


SPECS = (
    Spec(
        "logprobs",
        _logprobs,
        _reference,
        (
            *(
                _case(*shape, dtype, False)
                for shape in ((1, 700, 3), (5, 3001, 20), (3, 4096, 1))
                for dtype in (torch.float32, torch.float16)
            ),
            _case(1, 151_936, 5, torch.bfloat16, True),
            _case(256, 151_936, 5, torch.bfloat16, True),
            _case(256, 151_936, 20, torch.bfloat16, True),
            _case(1024, 151_936, 0, torch.bfloat16, True),
            _case(256, 128_256, 5, torch.bfloat16, True),
        ),
        dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1e-6),
        "float32 throughout: the mass is added in another order, and a logprob is rounded thrice",
    ),
)
