"""Who has which adapter in a step of decodes, on its way to places that graphs know.

Two descriptions a step: of its tokens in the order in which they are computed, and of the rows that sample in
the plan's order, which is that behind the last attention. Knows slots, and nothing of what lies in them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from workbench.engine.plan import Ints
from workbench.kernels.low_rank.kernel import block_size
from workbench.kernels.low_rank.stack import Cut, Segments, cut, most_blocks

Longs = npt.NDArray[np.int64]

_ALIGNED = 4  # int32 numbers


class Pair(NamedTuple):
    tokens: Segments
    wanted: Segments


class SegmentStaging:
    """Packed descriptions, pinned, a few in turn, so that none is written while it is read."""

    def __init__(self, lines: int, slots: int, device: torch.device, turns: int) -> None:
        """`lines`: of the largest step of decodes."""
        self._slots = slots
        words, on_gpu = 2 * self._words(lines), device.type == "cuda"
        self._host = [torch.zeros(words, dtype=torch.int32, pin_memory=on_gpu) for _ in range(turns)]
        self._memory = torch.zeros(words, dtype=torch.int32, device=device)
        self._sent: tuple[Ints, int] | None = None  # the rows and lines that the device has been told of

    def clear(self) -> None:
        self._sent = None

    def _words(self, lines: int) -> int:
        return -(-self._fields(lines)[1].stop // _ALIGNED) * _ALIGNED

    def send(self, rows: Ints, turn: int, lines: int, tokens: Longs, wanted: Longs) -> None:
        """One copy, unless the same members were told of last.

        Args:
            rows: the plan's, the same object as long as the members are the same.
            lines: of the graph.
            tokens, wanted: [n]; slots in the two orders, less than 0 for no adapter.
        """
        if self._sent is not None and self._sent[0] is rows and self._sent[1] == lines:
            return
        host, words = self._host[turn], self._words(lines)
        array = host.numpy()
        for begin, slots in ((0, tokens), (words, wanted)):
            self._pack(array[begin : begin + words], lines, cut(slots, block_size(lines)))
        self._memory[: 2 * words].copy_(host[: 2 * words], non_blocking=True)
        self._sent = rows, lines

    def _fields(self, lines: int) -> tuple[slice, slice]:
        """Where blocks and tokens lie, behind the count of the blocks."""
        blocks = _ALIGNED + 3 * most_blocks(lines, block_size(lines), self._slots)
        return slice(_ALIGNED, blocks), slice(blocks, blocks + lines)

    def _pack(self, array: npt.NDArray[np.int32], lines: int, found: Cut) -> None:
        blocks, tokens = self._fields(lines)
        array[0] = len(found.blocks)
        array[blocks] = 0
        array[blocks][: found.blocks.size] = found.blocks.reshape(-1)
        array[tokens][: len(found.tokens)] = found.tokens

    def segments(self, lines: int) -> Pair:
        """Where a graph of so many lines finds them."""
        words, (blocks, tokens) = self._words(lines), self._fields(lines)
        both = (self._memory[:words], self._memory[words : 2 * words])
        return Pair(*(Segments(memory[tokens], memory[blocks].view(-1, 3), memory[:1]) for memory in both))
