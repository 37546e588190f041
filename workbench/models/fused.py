"""A layer's operations by the project's kernels. Imported where there is a GPU, or a test asks.

Which of two ways a product takes depends on the number of rows alone, so that a graph captured for it holds.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.gated_linear.kernel import gated_linear, pays
from workbench.kernels.linear.kernel import few, few_rows
from workbench.kernels.rms_norm.kernel import add_rms_norm, rms_norm
from workbench.kernels.silu_mul.kernel import silu_mul
from workbench.models.linear import Linear
from workbench.models.operations import Projected


class FusedOperations:
    """One kernel where rows are few; norm, then product and gate, where they are more; then each apart."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)

    def project(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        if few(x.shape[0], linear.weight):
            return _few(x, residual, norm, eps, linear, gated=False)
        hidden, residual = self.normed(x, residual, norm, eps)
        return Projected(linear(hidden), residual)

    def project_gated(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        if few(x.shape[0], linear.weight):
            return _few(x, residual, norm, eps, linear, gated=True)
        if pays(x, linear.weight, linear.bias):
            hidden, residual = self.normed(x, residual, norm, eps)
            return Projected(gated_linear(hidden, linear.weight), residual)
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

    def of(self, wanted: Tensor) -> FusedOperations:
        return self


def _few(
    x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear, gated: bool
) -> Projected:
    y, total = few_rows(x, linear.weight, linear.bias, residual, norm, eps, gated)
    return Projected(y, x if total is None else total)
