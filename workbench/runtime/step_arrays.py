"""One step's numbers as one packed array: written on the host, copied at once, read on the device in place.

The places of the fields follow from the number of lines alone, so that a graph captured for it finds them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Ints, StepPlan

_ALIGNED = 4  # int32 numbers: fields begin at multiples of 16 bytes
NOBODY = -1  # row of a line that is padding, or yields no token


class StepArrays(NamedTuple):
    """Views of one packed int32 memory: numpy on the host, tensors on the device. R lines, G KV groups."""

    rows: Tensor  # [R]; batch rows
    starts: Tensor  # [R]; position of the first token computed
    begins: Tensor  # [R + 1]; where in the step's tokens each line begins; padding lines are empty
    last: Tensor  # [R] where in the step's tokens the last one of each sampling line is, then zeros
    option_rows: Tensor  # [R]; batch rows of the sampling lines, then zeros
    token_rows: Tensor  # [R]; the same, NOBODY for lines that are padding or yield no token
    lengths: Tensor  # [R]; tokens of the sampling lines before the new one
    shared: Tensor  # [1]; leading blocks that all lines have in common
    grown: Tensor  # [3, G, R]; rows (NOBODY: padding), places, blocks


def num_words(lines: int, groups: int) -> int:
    """Length of the packed array."""
    return _places(lines, groups)[1]


def views(memory: Tensor, lines: int, groups: int) -> StepArrays:
    """The fields of a packed array, as views."""
    places, _ = _places(lines, groups)
    return StepArrays(*(memory[begin : begin + _size(shape)].view(shape) for begin, shape in places))


def _places(lines: int, groups: int) -> tuple[list[tuple[int, tuple[int, ...]]], int]:
    shapes: list[tuple[int, ...]] = [(lines,), (lines,), (lines + 1,), (lines,), (lines,), (lines,), (lines,)]
    places, begin = [], 0
    for shape in (*shapes, (1,), (3, groups, lines)):
        places.append((begin, shape))
        begin += -(-_size(shape) // _ALIGNED) * _ALIGNED
    return places, begin


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def pack(memory: Ints, plan: StepPlan, lines: int, shared: int) -> int:
    """Write a plan of at most `lines` rows into host memory; the words used.

    `grown` is left at NOBODY where the plan grows more blocks than there are lines: see `fits`.
    """
    groups, n = len(plan.grown), len(plan.rows)
    places, words = _places(lines, groups)
    fields = [memory[begin : begin + _size(shape)].reshape(shape) for begin, shape in places]
    rows, starts, begins, last, option_rows, token_rows, lengths, common, grown = fields
    rows[:n], rows[n:] = plan.rows, 0
    starts[:n], starts[n:] = plan.starts, 0
    begins[0] = 0
    np.cumsum(plan.counts, out=begins[1 : n + 1])
    begins[n + 1 :] = begins[n]
    m = int(plan.samples.sum())
    sampling = plan.samples if m < n else slice(None)
    last[:m], last[m:] = begins[1 : n + 1][sampling] - 1, 0
    option_rows[:m], option_rows[m:] = plan.rows[sampling], 0
    token_rows[:m], token_rows[m:] = option_rows[:m], NOBODY
    lengths[:m], lengths[m:] = (plan.starts + plan.counts)[sampling], 0
    common[0] = shared
    grown[0] = NOBODY
    if fits(plan, lines):
        for group, growth in enumerate(plan.grown):
            count = len(growth.rows)
            grown[0, group, :count] = growth.rows
            grown[1, group, :count] = growth.places
            grown[2, group, :count] = growth.blocks
    return words


def fits(plan: StepPlan, lines: int) -> bool:
    """Whether the plan's growth has room in the packed array."""
    return all(len(growth.rows) <= lines for growth in plan.grown)


class Staging:
    """Packed arrays on their way to the device: pinned, a few in turn, so that none is written while read."""

    def __init__(self, words: int, device: torch.device, turns: int) -> None:
        on_gpu = device.type == "cuda"
        self._host = [torch.zeros(words, dtype=torch.int32, pin_memory=on_gpu) for _ in range(turns)]
        self._turn = 0
        self.memory = torch.zeros(words, dtype=torch.int32, device=device)

    def send(self, plan: StepPlan, lines: int, shared: int) -> None:
        """One copy, in the order of the stream."""
        host = self._host[self._turn]
        self._turn = (self._turn + 1) % len(self._host)
        words = pack(host.numpy(), plan, lines, shared)
        self.memory[:words].copy_(host[:words], non_blocking=True)
