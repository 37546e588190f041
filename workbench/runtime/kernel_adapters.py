"""LoRA adapters on a GPU: their weights in slots, and what a step is told of who has which.

Weights are copied on a stream of their own, behind the steps that may still read the slot and beside the one
that was queued last. Knows rows, plans and products; nothing of files or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.plan import Ints, Load, StepPlan
from workbench.kernels.low_rank.kernel import (
    add_low_rank,
    block_size,
    make_space,
    space_rows,
)
from workbench.kernels.low_rank.stack import (
    FIELDS,
    Module,
    Segments,
    Stack,
    cut,
    padded,
    upload,
    words_of,
    write,
)
from workbench.lora.modules import EMBEDDING, LM_HEAD, PRODUCTS, Place, layer_sizes
from workbench.models.adapted import AdaptedOperations
from workbench.models.decoder import Decoder
from workbench.models.linear import Linear
from workbench.models.spec import ModelSpec
from workbench.runtime.adapter_weights import LowRank, Weights
from workbench.runtime.segment_staging import SegmentStaging
from workbench.runtime.torch_adapters import places_of

Longs = npt.NDArray[np.int64]

NO_ADAPTER = -1
# What a step's adapters change: nothing, attention's products, or anything. Graphs are captured for each, so
# that a step pays for the products that its adapters have.
NOTHING, ATTENTION, ANYTHING = range(3)
_OF_ATTENTION = ("qkv", "o")


class Product(NamedTuple):
    """A product of the model, as the stack knows it."""

    index: int  # type: ignore[assignment]  # in the stack's table; shadows tuple.index, unused here
    n_in: int
    n_outs: tuple[int, ...]


def products_of(spec: ModelSpec) -> dict[Place, Product]:
    """Every product that an adapter may change."""
    by_name: dict[str, list[tuple[int, int]]] = {}
    for module, sizes in layer_sizes(spec).items():
        by_name.setdefault(PRODUCTS[module], []).append(sizes)
    shapes = {
        Place(number, name): (sizes[0][1], tuple(n_out for n_out, _ in sizes))
        for number in range(spec.num_layers)
        for name, sizes in by_name.items()
    }
    shapes[Place(-1, EMBEDDING)] = (spec.vocab_size, (spec.hidden_size,))
    shapes[Place(-1, LM_HEAD)] = (spec.hidden_size, (spec.vocab_size,))
    return {place: Product(index, *shape) for index, (place, shape) in enumerate(shapes.items())}


def slot_words(spec: ModelSpec, max_rank: int) -> int:
    """Numbers of a slot, which has room for an adapter of that rank on everything."""
    return sum(words_of(max_rank, n_in, n_outs) for _, n_in, n_outs in products_of(spec).values())


def adapter_bytes(spec: ModelSpec, max_loras: int, max_rank: int, tokens: int, dtype: torch.dtype) -> int:
    """Device memory of the slots, and of what a step computes between shrink and expand."""
    space = 4 * space_rows(tokens) * _most_ranks(max_rank)
    return max_loras * slot_words(spec, max_rank) * dtype.itemsize + space


def _most_ranks(max_rank: int) -> int:
    return 3 * padded(max_rank)


class KernelAdapters:
    """The slots on the device, and which batch row uses which."""

    def __init__(
        self,
        model: Decoder,
        weights: Callable[[int], Weights],
        max_loras: int,
        max_rank: int,
        max_rows: int,
        max_tokens: int,
        turns: int,
    ) -> None:
        """`weights`: of an adapter that has a slot, by its number."""
        device = model.device
        self._model = model
        self._weights = weights
        self._places = places_of(model)
        self.products = products_of(model.spec)
        words = slot_words(model.spec, max_rank)
        table = torch.zeros((max_loras, len(self.products), FIELDS), dtype=torch.int32, device=device)
        self.stack = Stack(torch.zeros((max_loras, words), dtype=model.dtype, device=device), table)
        self.space = make_space(max_tokens, _most_ranks(max_rank), device)
        self.staging = SegmentStaging(max_rows, max_loras, device, turns)
        self._rows: Longs = np.full(max_rows, NO_ADAPTER, np.int64)  # slot of each batch row's adapter
        self._changes = np.full(max_loras, ANYTHING, np.int64)  # what its adapter changes, by slot
        self._copying = Copying(self.stack)
        self._counted: Ints | None = None  # the rows that `_count` is of: the same object, the same members
        self._count = NOTHING  # what their adapters change
        self._later: tuple[Load, ...] = ()  # loads that wait until the step has been queued

    def apply(self, plan: StepPlan) -> None:
        """Requests come to their rows; adapters that they bring along to their slots, the others `later`."""
        for added in plan.added:
            self._rows[added.row] = NO_ADAPTER if added.adapter is None else added.adapter
        self._later = ()
        if plan.loads:
            self._copying.follow()
            used = set(self._rows[plan.rows].tolist())
            self._load([load for load in plan.loads if load.slot in used])
            self._later = tuple([load for load in plan.loads if load.slot not in used])
        self._copying.wait()

    def load_later(self) -> None:
        """The step has been queued: copy what later ones need, beside it."""
        self._load(self._later)
        self._later = ()

    def _load(self, loads: Sequence[Load]) -> None:
        for slot, adapter in loads:
            weights = self._weights(adapter)
            self._changes[slot] = _changes_of(weights)
            self._copying.copy(slot, weights, self.products)

    def changes_of(self, plan: StepPlan) -> int:
        """What the adapters of a plan change: NOTHING, ATTENTION or ANYTHING."""
        if plan.rows is not self._counted:
            slots = self._rows[plan.rows]
            self._counted = plan.rows
            self._count = int(self._changes[slots[slots >= 0]].max(initial=NOTHING))
        return self._count

    def send(self, plan: StepPlan, turn: int, lines: int, order: Longs | None) -> None:
        """Who has which adapter in a step of decodes, for a graph of so many lines.

        Args:
            order: [n]; the plan's line that comes first, second ...; None: as they are.
        """
        slots = self._rows[plan.rows]
        tokens = slots if order is None else slots[order]
        self.staging.send(plan.rows, turn, lines, tokens, slots)

    def additions(self, lines: int, changes: int) -> KernelAdditions:
        """Of a step of decodes, as it was sent; `changes`: what they may change."""
        tokens, wanted = self.staging.segments(lines)
        return KernelAdditions(self, tokens, changes, KernelAdditions(self, wanted, changes))

    def operations_of(self, plan: StepPlan, places: Longs | None, changes: int) -> AdaptedOperations:
        """What computes any other step.

        Args:
            places: [t]; tokens, beside those that sample, that go on behind the last attention.
        """
        slots = self._rows[plan.rows]
        tokens = np.repeat(slots, plan.counts)
        wanted = self._rows[plan.yields.rows]
        if places is not None:
            wanted = np.concatenate((wanted, tokens[places]))
        behind = KernelAdditions(self, self.segments(wanted), changes, None, wanted)
        return self.operations(KernelAdditions(self, self.segments(tokens), changes, behind))

    def operations(self, additions: KernelAdditions) -> AdaptedOperations:
        return AdaptedOperations(self._model.operations, additions)

    def segments(self, slots: Longs) -> Segments:
        """Made and uploaded now."""
        return upload(cut(slots, block_size(len(slots))), self.stack.memory.device)

    def place_of(self, linear: Linear) -> Place:
        return self._places[id(linear)]

    def clear(self) -> None:
        """Forget the batch; what lies in slots counts for nothing."""
        self._later, self._counted = (), None
        self.staging.clear()


class KernelAdditions:
    """The low-rank products of a step's tokens, by kernels."""

    def __init__(
        self,
        adapters: KernelAdapters,
        segments: Segments,
        changes: int,
        wanted: KernelAdditions | None = None,
        slots: Longs | None = None,
    ) -> None:
        """`wanted`: of those that go on behind the last attention. `slots`: of the tokens, where known."""
        self._adapters = adapters
        self._segments = segments
        self._changes = changes
        self._wanted = wanted
        self._slots = slots

    def touches(self, linear: Linear) -> bool:
        name = self._adapters.place_of(linear).product
        return self._changes == ANYTHING or (self._changes == ATTENTION and name in _OF_ATTENTION)

    def add(self, linear: Linear, x: Tensor, y: Tensor) -> None:
        self._add(self._adapters.place_of(linear), x, y)

    def add_embeddings(self, token_ids: Tensor, y: Tensor) -> None:
        if self._changes == ANYTHING:
            self._add(Place(-1, EMBEDDING), token_ids, y)

    def _add(self, place: Place, x: Tensor, y: Tensor) -> None:
        adapters = self._adapters
        index, _, n_outs = adapters.products[place]
        add_low_rank(x, y, adapters.stack, index, n_outs, self._segments, adapters.space)

    def of(self, wanted: Tensor) -> KernelAdditions:
        assert self._wanted is not None, "nothing was prepared for fewer tokens"
        return self._wanted

    def part(self, begin: int, end: int) -> KernelAdditions:
        assert self._slots is not None, "a graph computes whole steps"
        slots = self._slots[begin:end]
        return KernelAdditions(self._adapters, self._adapters.segments(slots), self._changes, None, slots)


class Copying:
    """Weights on their way to slots."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._on_gpu = stack.memory.device.type == "cuda"
        words = stack.memory.shape[1]
        self._host = torch.empty(words, dtype=stack.memory.dtype, pin_memory=self._on_gpu)
        self._table = torch.zeros(stack.table.shape[1:], dtype=torch.int32, pin_memory=self._on_gpu)
        self._stream = torch.cuda.Stream() if self._on_gpu else None
        self._done = torch.cuda.Event() if self._on_gpu else None
        self._waiting = False  # for a copy that was queued

    def copy(self, slot: int, weights: Weights, products: dict[Place, Product]) -> None:
        """Queue a copy, behind all that had been queued when `follow` was called last."""
        if self._done is not None:
            self._done.synchronize()  # the host's copy of the one before has left
        end, table = 0, self._table.numpy()
        table[:] = 0
        for place, low_rank in weights.items():
            product, gathers = products[place], place.product == EMBEDDING
            end = write(self._host, table[product.index], end, _modules(low_rank, product), gathers=gathers)
        if self._stream is None or self._done is None:
            self._send(slot, end)
            return
        with torch.cuda.stream(self._stream):
            self._send(slot, end)
            self._done.record()
        self._waiting = True

    def _send(self, slot: int, end: int) -> None:
        self._stack.memory[slot, :end].copy_(self._host[:end], non_blocking=True)
        self._stack.table[slot].copy_(self._table, non_blocking=True)

    def follow(self) -> None:
        """Copies from now on come behind what has been queued up to now."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())

    def wait(self) -> None:
        """What is queued from now on finds the copies made."""
        if self._waiting and self._done is not None:
            torch.cuda.current_stream().wait_event(self._done)
            self._waiting = False


def _modules(low_rank: LowRank, product: Product) -> list[Module]:
    begins = [0, *np.cumsum(product.n_outs).tolist()]
    found, first = [], 0
    for block in low_rank.blocks:
        down = low_rank.shrink[first : first + block.rank]
        found.append(Module(begins.index(block.column), down, block.expand))
        first += block.rank
    return found


def _changes_of(weights: Weights) -> int:
    return ATTENTION if all(place.product in _OF_ATTENTION for place in weights) else ANYTHING
