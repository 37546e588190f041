"""What a layer is made of, as one device computes it: torch on a CPU, the project's kernels on a GPU.

A projection comes with what stands before it (residual stream, norm) and behind it (gate), for where rows are
few one kernel does it all. Knows no layer, no cache.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.rms_norm.reference import add_rms_norm, rms_norm
from workbench.kernels.silu_mul.reference import silu_mul
from workbench.models.linear import Linear


class Projected(NamedTuple):
    y: Tensor  # [T, out]; gated: [T, out / 2]
    residual: Tensor  # [T, hidden]; the stream behind the addition


class Operations(Protocol):
    """x joins the residual stream, the sum is normed, the norm is projected: each a new tensor."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """[T] int64 -> [T, hidden]."""
        ...

    def project(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        """x [T, hidden] + residual (None: x is the stream), RMS norm, product."""
        ...

    def project_gated(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        """The same, then silu(first half) * second half."""
        ...

    def normed(self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float) -> Projected:
        """The same without a product: [T, hidden]."""
        ...

    def gate(self, y: Tensor) -> Tensor:
        """silu(first half) * second half: [T, 2 * n] -> [T, n]."""
        ...

    def product(self, x: Tensor, linear: Linear) -> Tensor:
        """[T, in] -> [T, out]."""
        ...

    def of(self, wanted: Tensor) -> Operations:
        """What computes these tokens alone, [m] int64; where all are computed alike, the same."""
        ...


class TorchOperations:
    """In torch, one after the other."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)

    def project(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        hidden, residual = self.normed(x, residual, norm, eps)
        return Projected(linear(hidden), residual)

    def project_gated(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        y, residual = self.project(x, residual, norm, eps, linear)
        return Projected(silu_mul(y), residual)

    def normed(self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float) -> Projected:
        if residual is None:
            return Projected(rms_norm(x, norm, eps), x)
        return Projected(*add_rms_norm(x, residual, norm, eps))

    def gate(self, y: Tensor) -> Tensor:
        return silu_mul(y)

    def product(self, x: Tensor, linear: Linear) -> Tensor:
        return linear(x)

    def of(self, wanted: Tensor) -> TorchOperations:
        return self
