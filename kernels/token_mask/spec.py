"""Token masks: cases. A value is kept as it is or becomes minus infinity, so nothing is rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from workbench.kernels.spec import Case, Inputs, Outputs, Spec
from workbench.kernels.token_mask import kernel, reference


def _make(masks: int, lines: int, vocab: int) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        def words() -> Tensor:
            shape = (masks, -(-vocab // 32))
            return torch.randint(-(2**31), 2**31, shape, generator=generator, device=device)

        values = torch.randn((lines, vocab), generator=generator, device=device)
        slots = torch.randperm(lines, generator=generator, device=device)[:masks].int()
        # Most grammars allow few tokens: one in eight here.
        return {"values": values, "slots": slots, "bits": (words() & words() & words()).int()}

    return make


def _case(masks: int, lines: int, vocab: int, timed: bool) -> Case:
    size = masks * (4 * vocab + vocab // 8 + 4)
    name = f"{masks}of{lines}x{vocab}"
    return Case(name, _make(masks, lines, vocab), size, masks * vocab, timed, torch.float32)


def _kernel(values: Tensor, slots: Tensor, bits: Tensor) -> Outputs:
    return (kernel.mask_tokens(values.clone(), slots, bits),)


def _reference(values: Tensor, slots: Tensor, bits: Tensor) -> Outputs:
    return (reference.mask_tokens(values, slots, bits),)


SPECS = (
    Spec(
        "token_mask",
        _kernel,
        _reference,
        (
            _case(1, 1, 320, False),
            _case(3, 5, 2601, False),
            _case(2, 4, 4096, False),
            _case(64, 64, 128_256, True),
            _case(256, 256, 151_936, True),
        ),
        {torch.float32: 1e-7},
        "values pass unchanged; the reference has them in float64",
    ),
)
