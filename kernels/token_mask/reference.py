"""Tokens that a mask of bits does not allow, in torch: what a CPU runs, what the kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_tokens(values: Tensor, slots: Tensor, bits: Tensor) -> Tensor:
    """See the kernel."""
    vocab = values.shape[1]
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = ((bits[:, :, None] >> places) & 1).flatten(1)[:, :vocab].bool()
    lines = slots.long()
    values[lines] = values[lines].masked_fill_(~allowed, float("-inf"))
    return values
