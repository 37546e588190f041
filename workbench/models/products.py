"""A product by whichever of the project's kernel and cuBLAS is faster for so many rows. Knows no layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.linear.kernel import few, few_rows


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by whichever is faster for so many rows."""
    return few_rows(x, weight, bias).y if few(x.shape[0], weight) else F.linear(x, weight, bias)


def product_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The same, written to `out` [T, out]."""
    if few(x.shape[0], weight):
        return few_rows(x, weight, bias, out=out).y
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)
