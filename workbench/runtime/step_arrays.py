"""One step's numbers as one packed array: written on the host, copied at once, read on the device in place.

The places of the fields follow from the number of lines alone, so that a graph captured for it finds them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.plan import Bools, Ints, StepPlan

_ALIGNED = 4  # int32 numbers: fields begin at multiples of 16 bytes
_SHARED = 7  # place of the field
NOBODY = -1  # row of a line that is padding, or yields no token
IN_ORDER = 16  # lines of decodes up to which they stay in the plan's order


class StepArrays(NamedTuple):
    """Views of one packed int32 memory: numpy on the host, tensors on the device. R lines, G KV groups.

    What is sampled has lines of its own, as the plan yields it: those of rows, then those behind drafts.
    """

    rows: Tensor  # [R]; batch rows, in the plan's order or another
    starts: Tensor  # [R]; position of the first token computed
    begins: Tensor  # [R + 1]; where in the step's tokens each line begins; padding lines are empty
    last: Tensor  # [R] where in the step's tokens is what predicts each token sampled, then zeros
    option_rows: Tensor  # [R]; batch rows that tokens are sampled for, then zeros
    token_rows: Tensor  # [R]; the same, then NOBODY
    lengths: Tensor  # [R]; the row's tokens before the one sampled
    shared: Tensor  # [1]; leading blocks that all lines have in common
    grown: Tensor  # [3, G, R]; rows (NOBODY: padding), places, blocks
    drafted: Tensor  # [3, R]; rows (NOBODY: padding), positions, ids of drafts, which nobody has sampled


Longs = npt.NDArray[np.int64]
Fields = tuple[npt.NDArray[np.int32], ...]  # the same on the host, in the same order


def num_words(lines: int, groups: int) -> int:
    """Length of the packed array."""
    return _places(lines, groups)[-1][1]


def views(memory: Tensor, lines: int, groups: int) -> StepArrays:
    """The fields of a packed array on the device."""
    return StepArrays(*(memory[begin:end].view(shape) for begin, end, shape in _places(lines, groups)))


def _places(lines: int, groups: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Where each field begins and ends, and its shape."""
    line = (lines,)
    shapes = [line, line, (lines + 1,), line, line, line, line, (1,), (3, groups, lines), (3, lines)]
    places, begin = [], 0
    for shape in shapes:
        end = begin + math.prod(shape)
        places.append((begin, end, shape))
        begin = -(-end // _ALIGNED) * _ALIGNED
    return places


class Order(NamedTuple):
    """Another order of a plan's lines. What samples stays in the plan's."""

    lines: Longs  # [n]; the plan's line that comes first, second ...
    places: Longs  # [n]; where each of the plan's lines went


def longest_last(starts: Ints) -> Order:
    """Lines by the length of their context.

    The attention of a large batch begins with its last lines, and long contexts that begin late keep a few
    processors busy when all others are done.
    """
    lines = np.argsort(starts, kind="stable")
    places = np.empty_like(lines)
    places[lines] = np.arange(len(lines))
    return Order(lines, places)


def pack(fields: Fields, plan: StepPlan, order: Order | None = None) -> None:
    """Write a plan into the fields of an array of at least as many lines as it has rows and samples.

    `grown` holds nothing where the plan grows more blocks than there are lines: see `fits`.
    """
    rows, starts, begins, last, option_rows, token_rows, lengths, _, grown, drafted = fields
    n = len(plan.rows)
    lines = slice(None) if order is None else order.lines
    rows[:n] = plan.rows[lines]
    starts[:n] = plan.starts[lines]
    begins[0] = 0
    plan.counts[lines].cumsum(out=begins[1 : n + 1])
    ends = begins[1 : n + 1] if order is None else begins[1 : n + 1][order.places]
    m = _pack_yields((last, option_rows, token_rows, lengths, drafted), plan, ends)
    if n < len(rows):
        begins[n + 1 :] = begins[n]
        rows[n:] = starts[n:] = 0
    if m < len(rows):
        last[m:] = option_rows[m:] = lengths[m:] = 0
        token_rows[m:] = NOBODY
    grown[0] = NOBODY
    if fits(plan, len(rows)):
        for group, growth in enumerate(plan.grown):
            for field, column in zip(grown[:, group], growth, strict=True):
                field[: len(column)] = column


def _pack_yields(fields: Fields, plan: StepPlan, ends: Ints) -> int:
    """What is sampled; how many. `ends` [n]: where in the step's tokens each of the plan's lines ends."""
    last, option_rows, token_rows, lengths, drafted = fields
    drafted[0] = NOBODY
    if plan.drafts is not None:
        rows, positions, lines = plan.yields
        m, count = len(rows), plan.num_drafts
        last[:m] = (ends - plan.counts - plan.starts)[lines] + positions - 1
        lengths[:m] = positions
        drafted[0, :count] = rows[m - count :]
        np.subtract(positions[m - count :], 1, out=drafted[1, :count])
        drafted[2, :count] = plan.drafts.token_ids
    else:
        sampling: slice | Bools = slice(None) if plan.samples.all() else plan.samples
        rows = plan.rows[sampling]
        m = len(rows)
        np.subtract(ends[sampling], 1, out=last[:m])
        np.add(plan.starts[sampling], plan.counts[sampling], out=lengths[:m])
    option_rows[:m] = token_rows[:m] = rows
    return m


def fits(plan: StepPlan, lines: int) -> bool:
    """Whether the plan's growth has room in an array of so many lines."""
    return all(len(growth.rows) <= lines for growth in plan.grown)


class _Cut(NamedTuple):
    """As much of the memories as an array of so many lines takes."""

    fields: Fields
    host: Tensor
    device: Tensor


class Staging:
    """Packed arrays on their way to the device: pinned, a few in turn, so that none is written while read."""

    def __init__(self, lines: int, groups: int, device: torch.device, turns: int) -> None:
        """`lines`: of the largest array."""
        words, on_gpu = num_words(lines, groups), device.type == "cuda"
        self._groups = groups
        self._host = [torch.zeros(words, dtype=torch.int32, pin_memory=on_gpu) for _ in range(turns)]
        self._cuts: dict[int, list[_Cut]] = {}  # by lines, one for each turn
        self.memory = torch.zeros(words, dtype=torch.int32, device=device)

    def send(self, plan: StepPlan, turn: int, lines: int, shared: int, order: Order | None) -> None:
        """One copy, in the order of the stream; the step that had this turn before has been collected."""
        if lines not in self._cuts:
            self._cuts[lines] = [self._cut(host, lines) for host in self._host]
        fields, host, device = self._cuts[lines][turn]
        pack(fields, plan, order)
        fields[_SHARED][0] = shared
        device.copy_(host, non_blocking=True)

    def _cut(self, host: Tensor, lines: int) -> _Cut:
        words = num_words(lines, self._groups)
        array = host.numpy()
        fields = [array[begin:end].reshape(shape) for begin, end, shape in _places(lines, self._groups)]
        return _Cut(tuple(fields), host[:words], self.memory[:words])
