"""silu(x @ gate.T) * (x @ up.T), in torch: what the kernel is held to."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from workbench.kernels.silu_mul.reference import silu_mul


def gated_linear(x: Tensor, weight: Tensor) -> Tensor:
    """The gated half of an MLP.

    Args:
        x: [T, in].
        weight: [2 * n, in]; the gate's rows, then as many of the other half.

    Returns:
        [T, n], rounded where the product, silu and its product each round.
    """
    return silu_mul(F.linear(x, weight))
