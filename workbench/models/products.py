"""A product by whichever of the project's kernel and cuBLAS is faster for so many rows. Knows no layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.linear.kernel import few, few_rows


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias by whichever is faster for so many rows."""
    return few_rows(x, weight, bias).y if few(x.shape[0], weight) else F.linear(x, weight, bias)


# A library asked to add a bias chooses among other kernels, and for some shapes better: large weights of few
# outputs, whose tiles do not fill an H200 unless their inner dimension is cut. us a product without and with,
# bfloat16, 4096 x 14336: 35.2 and 32.8 at 32 rows, 37.2 and 33.5 at 64, 39.3 and 34.5 at 96, 38.6 and 40.5 at
# 128; 4096 x 4096: 16.8 and 13.6 at 96; smaller weights, or more outputs: never less (kernels/LOG.md).
BIASED_ROWS = range(32, 113)
BIASED_OUTPUTS = 4096
BIASED_BYTES = 16 << 20


def product_of(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What multiplies by this weight, of a linear with or without a bias."""
    if bias is None and weight.shape[0] <= BIASED_OUTPUTS and weight.nbytes > BIASED_BYTES:
        return _AddingNothing(weight.new_zeros(weight.shape[0]))
    return product


@dataclass(frozen=True, slots=True)
class _AddingNothing:
    """A product without a bias, with one of zeros where that is faster."""

    zeros: Tensor  # [out]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, self.zeros if bias is None and x.shape[0] in BIASED_ROWS else bias)


def product_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The same, written to `out` [T, out]."""
    if few(x.shape[0], weight):
        return few_rows(x, weight, bias, out=out).y
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)
