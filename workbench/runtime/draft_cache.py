"""Which of a drafter's keys and values are there, by block. Knows block tables and lengths; no tensors.

A drafter shares the model's block tables, but does not compute every token when the model does: where drafts
bring nothing, it rests. What it has to catch up with is told by counts, a block each::

    model's    [block: 16 tokens][block: 16 tokens][block: 3 tokens
    drafter's   filled 16         filled 5          filled 0
                                  ^ from here on it computes, before it drafts
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.engine.plan import within

Longs = npt.NDArray[np.int64]


class Filled:
    """Leading tokens of each block that the drafter has computed since the model wrote them."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """`num_blocks`: all that block tables may name, the null block included."""
        self._filled: Longs = np.zeros(num_blocks, np.int64)
        self._size = block_size

    def forget(self) -> None:
        """Nothing is there."""
        self._filled[:] = 0

    def overwritten(self, tables: Longs, starts: Longs, ends: Longs) -> None:
        """The model writes tokens [starts, ends) [n], whoever's they were; `tables` [n, blocks]."""
        lines, places = self._touched(starts, ends)
        blocks = tables[lines, places]
        self._filled[blocks] = np.minimum(self._filled[blocks], (starts[lines] - places * self._size).clip(0))

    def computed(self, tables: Longs, starts: Longs, ends: Longs) -> None:
        """The drafter has computed tokens [starts, ends) [n]; what is ahead of them was there."""
        lines, places = self._touched(starts, ends)
        self._filled[tables[lines, places]] = (ends[lines] - places * self._size).clip(max=self._size)

    def _touched(self, starts: Longs, ends: Longs) -> tuple[Longs, Longs]:
        """Of n requests' blocks that hold some token of [starts, ends): whose, and which."""
        first = starts // self._size
        counts = np.where(ends > starts, (ends - 1) // self._size + 1 - first, 0)
        lines = np.arange(len(starts)).repeat(counts)
        return lines, first[lines] + within(counts.astype(np.int32))

    def reached(self, tables: Longs, lengths: Longs) -> Longs:
        """[n]; of each request's first `lengths` tokens, how many in a row are there."""
        places = np.arange(-(-int(lengths.max(initial=0)) // self._size) + 1)
        inside = places * self._size < lengths[:, None]
        filled = np.where(inside, self._filled[np.where(inside, tables[:, : len(places)], 0)], 0)
        first = (filled < self._size).argmax(1)  # the last column never is full
        reached: Longs = np.minimum(first * self._size + filled[np.arange(len(first)), first], lengths)
        return reached
