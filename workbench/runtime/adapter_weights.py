"""An adapter's weights on the host, arranged by the products of the model they are added to.

Modules that a model computes by one product (q, k and v; gate and up) share its input: their A lie one below
the other, and each B belongs to its own columns of the product. The scale is folded into B.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.lora.adapter_file import WEIGHTS, AdapterFile
from workbench.lora.modules import PRODUCTS, Place, layer_sizes, place_of
from workbench.models.mapped_file import MappedFile
from workbench.models.spec import ModelSpec


class Block(NamedTuple):
    """One module's part of a product."""

    column: int  # of the product, where its results begin
    rank: int
    expand: Tensor  # [out, rank]; B, times the scale


class LowRank(NamedTuple):
    """What an adapter adds to one product."""

    shrink: Tensor  # [sum of ranks, in]; the A of its modules; of the embedding [rank, vocab]
    blocks: tuple[Block, ...]  # in the order of the rows of `shrink`


Weights = Mapping[Place, LowRank]  # of one adapter; products it leaves alone are not in it


def load_weights(file: AdapterFile, spec: ModelSpec, dtype: torch.dtype) -> Weights:
    """The weights of a checked adapter, in `dtype`."""
    columns = _columns(spec)
    found: dict[Place, list[tuple[int, Tensor, Tensor]]] = {}
    stored = MappedFile(file.folder / WEIGHTS)
    for module, change in file.changes.items():
        shrink, expand = stored.read(change.shrink), stored.read(change.expand)
        column = columns.get(module.split(".", 2)[-1], 0)
        # Scaled ahead of the rounding, or it would round twice.
        scaled = (expand.float() * change.scale).to(dtype)
        found.setdefault(place_of(module), []).append((column, shrink.to(dtype), scaled))
    return MappingProxyType({place: _merged(parts) for place, parts in found.items()})


def _merged(parts: list[tuple[int, Tensor, Tensor]]) -> LowRank:
    parts.sort(key=lambda part: part[0])
    blocks = tuple(Block(column, len(shrink), expand.contiguous()) for column, shrink, expand in parts)
    return LowRank(torch.cat([shrink for _, shrink, _ in parts]), blocks)


def _columns(spec: ModelSpec) -> dict[str, int]:
    """Where each module of a layer begins in its product."""
    columns, ends = {}, dict.fromkeys(PRODUCTS.values(), 0)
    for module, sizes in layer_sizes(spec).items():
        product = PRODUCTS[module]
        columns[module] = ends[product]
        ends[product] += sizes.n_out
    return columns
