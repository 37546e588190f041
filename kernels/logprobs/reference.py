"""Logprobs, ranks and best tokens of each row, in torch: what a CPU runs, what the kernel is held to."""

from __future__ import annotations

from torch import Tensor
from workbench.kernels.sample.reference import top_logprobs


def logprobs(
    logits: Tensor, chosen: Tensor, k: int, *, as_logits: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See the kernel: the same values, with int64 ranks and ids, and equal tokens in any order."""
    return top_logprobs(logits, chosen, k, logits=as_logits)
