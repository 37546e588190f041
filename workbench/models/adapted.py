"""A layer's operations with something added to some products: what LoRA adapters change for each token.

Knows that there are additions, and not how they are stored or which token has which.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from workbench.models.linear import Linear
from workbench.models.operations import Operations, Projected


class Additions(Protocol):
    """The low-rank products of a step's tokens. What is added is added in place."""

    def touches(self, linear: Linear) -> bool:
        """Whether any token's product by this weight is changed."""
        ...

    def add(self, linear: Linear, x: Tensor, y: Tensor) -> None:
        """y [T, out] += what each token's adapter makes of x [T, in]."""
        ...

    def add_embeddings(self, token_ids: Tensor, y: Tensor) -> None:
        """y [T, hidden] += what each token's adapter changes in its embedding; token_ids [T] int64."""
        ...

    def of(self, wanted: Tensor) -> Additions:
        """Those of some tokens alone, [m] int64."""
        ...

    def part(self, begin: int, end: int) -> Additions:
        """Those of the tokens [begin, end)."""
        ...


class AdaptedOperations:
    """`base`, with additions. Products that nobody's adapter touches stay as they are, fused."""

    def __init__(self, base: Operations, additions: Additions) -> None:
        self._base = base
        self._additions = additions

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        y = self._base.embed(token_ids, table)
        self._additions.add_embeddings(token_ids, y)
        return y

    def project(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        if not self._additions.touches(linear):
            return self._base.project(x, residual, norm, eps, linear)
        hidden, residual = self._base.normed(x, residual, norm, eps)
        return Projected(self.product(hidden, linear), residual)

    def project_gated(
        self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float, linear: Linear
    ) -> Projected:
        if not self._additions.touches(linear):
            return self._base.project_gated(x, residual, norm, eps, linear)
        y, residual = self.project(x, residual, norm, eps, linear)
        return Projected(self._base.gate(y), residual)

    def normed(self, x: Tensor, residual: Tensor | None, norm: Tensor, eps: float) -> Projected:
        return self._base.normed(x, residual, norm, eps)

    def gate(self, y: Tensor) -> Tensor:
        return self._base.gate(y)

    def product(self, x: Tensor, linear: Linear) -> Tensor:
        y = self._base.product(x, linear)
        self.add(linear, x, y)
        return y

    def add(self, linear: Linear, x: Tensor, y: Tensor) -> None:
        """What adapters add to a product that was computed elsewhere, in place."""
        if self._additions.touches(linear):
            self._additions.add(linear, x, y)

    def of(self, wanted: Tensor) -> AdaptedOperations:
        return AdaptedOperations(self._base, self._additions.of(wanted))

    def part(self, begin: int, end: int) -> AdaptedOperations:
        """What computes the tokens [begin, end) alone."""
        return AdaptedOperations(self._base, self._additions.part(begin, end))
