"""LoRA adapters in plain torch: the rows of a step grouped by their adapter, a group's product at a time.

A slot is a reference to weights on the host. Knows rows, plans and products; nothing of files or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.plan import StepPlan
from workbench.lora.modules import EMBEDDING, LM_HEAD, Place
from workbench.models.adapted import AdaptedOperations
from workbench.models.decoder import Decoder
from workbench.models.linear import Linear
from workbench.runtime.adapter_weights import LowRank, Weights

Longs = npt.NDArray[np.int64]

NO_ADAPTER = -1
# Ranks up to which the modules of a product are computed as one: the zeros between them cost less than calls.
MERGED_RANK = 64


class Group(NamedTuple):
    """Tokens with the same adapter."""

    products: Weights
    tokens: slice | Tensor  # where they are: a stretch, or [n] int64


def places_of(model: Decoder) -> dict[int, Place]:
    """The product that each weight of the model computes, by the identity of its Linear."""
    found = {id(model.lm_head): Place(-1, LM_HEAD)}
    for number, layer in enumerate(model.layers):
        linears = {"qkv": layer.qkv, "o": layer.o, "gate_up": layer.gate_up, "down": layer.down}
        found |= {id(linear): Place(number, product) for product, linear in linears.items()}
    return found


class TorchAdapters:
    """The slots of a runner in plain torch, and which batch row uses which."""

    def __init__(self, model: Decoder, weights: Callable[[int], Weights], max_rows: int) -> None:
        """`weights`: of an adapter that has a slot, by its number."""
        self._model = model
        self._places = places_of(model)
        self._weights = weights
        self._slots: dict[int, Weights] = {}
        self._rows: Longs = np.full(max_rows, NO_ADAPTER, np.int64)  # slot of each batch row's adapter

    def clear(self) -> None:
        self._slots.clear()

    def apply(self, plan: StepPlan) -> None:
        """Adapters come to their slots, and requests to their rows."""
        for slot, adapter in plan.loads:
            self._slots[slot] = _merged(self._weights(adapter), self._model.device)
        for added in plan.added:
            self._rows[added.row] = NO_ADAPTER if added.adapter is None else added.adapter

    def operations(self, plan: StepPlan, begins: Longs) -> AdaptedOperations | None:
        """What computes the step's tokens; None: nobody in it has an adapter.

        Args:
            begins: [n]; where in the step's tokens each line of the plan begins.
        """
        slots = self._rows[plan.rows]
        if (slots == NO_ADAPTER).all():
            return None
        counts = plan.counts.astype(np.int64)
        places = np.repeat(begins - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        tokens = np.empty(len(places), np.int64)
        tokens[places] = np.repeat(slots, counts)
        return AdaptedOperations(
            self._model.operations, TorchAdditions(tokens, self._slots, self._places, self._model.device)
        )


class TorchAdditions:
    """The low-rank products of some tokens."""

    def __init__(
        self,
        slots: Longs,
        adapters: Mapping[int, Weights],
        places: Mapping[int, Place],
        device: torch.device,
    ) -> None:
        """`slots` [T]: of each token's adapter."""
        self._slots = slots
        self._adapters = adapters
        self._places = places
        self._device = device
        self._groups = [Group(adapters[slot], _where(slots == slot, device)) for slot in _present(slots)]

    def touches(self, linear: Linear) -> bool:
        place = self._places[id(linear)]
        return any(place in group.products for group in self._groups)

    def add(self, linear: Linear, x: Tensor, y: Tensor) -> None:
        place = self._places[id(linear)]
        for products, tokens in self._groups:
            if (low_rank := products.get(place)) is not None:
                hidden = x[tokens].to(low_rank.shrink.dtype) @ low_rank.shrink.T
                _expand(hidden, low_rank, tokens, y)

    def add_embeddings(self, token_ids: Tensor, y: Tensor) -> None:
        for products, tokens in self._groups:
            if (low_rank := products.get(Place(-1, EMBEDDING))) is not None:
                _expand(low_rank.shrink.T[token_ids[tokens]], low_rank, tokens, y)

    def of(self, wanted: Tensor) -> TorchAdditions:
        return TorchAdditions(self._slots[wanted.cpu().numpy()], self._adapters, self._places, self._device)

    def part(self, begin: int, end: int) -> TorchAdditions:
        return TorchAdditions(self._slots[begin:end], self._adapters, self._places, self._device)


def _expand(hidden: Tensor, low_rank: LowRank, tokens: slice | Tensor, y: Tensor) -> None:
    """y[tokens] += hidden [n, ranks] @ B.T, block by block."""
    begin = 0
    for column, rank, expand in low_rank.blocks:
        columns = slice(column, column + len(expand))
        added = hidden[:, begin : begin + rank] @ expand.T
        if isinstance(tokens, slice):
            y[tokens, columns] += added
        else:
            y[:, columns].index_add_(0, tokens, added.to(y.dtype))
        begin += rank


def _present(slots: Longs) -> list[int]:
    return [slot for slot in np.unique(slots).tolist() if slot != NO_ADAPTER]


def _where(mine: npt.NDArray[np.bool_], device: torch.device) -> slice | Tensor:
    (tokens,) = mine.nonzero()
    first, last = int(tokens[0]), int(tokens[-1])
    if last - first + 1 == len(tokens):
        return slice(first, last + 1)
    return torch.from_numpy(tokens).to(device)


def _merged(weights: Weights, device: torch.device) -> Weights:
    """In float32, which a CPU multiplies fastest; small blocks as one."""
    return {place: _as_one(low_rank, device) for place, low_rank in weights.items()}


def _as_one(low_rank: LowRank, device: torch.device) -> LowRank:
    shrink = low_rank.shrink.to(device, torch.float32)
    blocks = tuple(block._replace(expand=block.expand.to(device, torch.float32)) for block in low_rank.blocks)
    if len(blocks) == 1 or len(shrink) > MERGED_RANK:
        return LowRank(shrink, blocks)
    first, last = blocks[0], blocks[-1]
    whole = shrink.new_zeros((last.column + len(last.expand) - first.column, len(shrink)))
    begin = 0
    for column, rank, expand in blocks:
        whole[column - first.column : column - first.column + len(expand), begin : begin + rank] = expand
        begin += rank
    return LowRank(shrink, (first._replace(rank=len(shrink), expand=whole),))
