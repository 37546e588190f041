"""Blocks of the KV cache: which are free, how often each is held, under which key it is found.

Knows block numbers only, neither tokens nor requests. Block 0 is never handed out: it is the null block,
where a table entry points that holds nothing (outside a sliding window, or padding).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import NamedTuple

NULL_BLOCK = 0


class Forgotten(NamedTuple):
    """A key that was forgotten because its block was taken."""

    line: int  # place of the block among those taken
    block: int
    key: bytes


class BlockPool:
    """`num_blocks` usable blocks, numbered 1 .. num_blocks.

    A block is held (references > 0) or free. A free block keeps its key, and stays findable, until it is
    taken for something else; the one that has been free longest goes first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * (num_blocks + 1)
        self._keys: list[bytes | None] = [None] * (num_blocks + 1)
        self._found: dict[bytes, int] = {}  # key -> block
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks + 1))  # oldest first

    def copy(self) -> BlockPool:
        """The same blocks in the same order; what is done to one, the other does not see."""
        other = copy(self)
        other._references, other._keys = self._references.copy(), self._keys.copy()
        other._found, other._free = self._found.copy(), self._free.copy()
        return other

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, cached or not: what can still be taken."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks findable by a key, held or free."""
        return len(self._found)

    def references(self, block: int) -> int:
        return self._references[block]

    def find(self, key: bytes) -> int | None:
        return self._found.get(key)

    def key_of(self, block: int) -> bytes | None:
        """The key a block is found by, if it is."""
        return self._keys[block]

    def keys(self) -> list[bytes]:
        """Of everything findable."""
        return list(self._found)

    def take(self, count: int, forgotten: list[Forgotten] | None = None) -> list[int]:
        """`count` blocks for one new holder; the caller has seen that `num_free` suffices.

        `forgotten`, where somebody wants to know, gets the keys that are forgotten with it.
        """
        pop, references, keys = self._free.popitem, self._references, self._keys
        blocks: list[int] = []
        for _ in range(count):
            block = pop(last=False)[0]
            key = keys[block]
            if key is not None:
                if forgotten is not None:
                    forgotten.append(Forgotten(len(blocks), block, key))
                self._forget(block, key)
            references[block] = 1
            blocks.append(block)
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each block, which may have been free."""
        references = self._references
        for block in blocks:
            if references[block] == 0:
                del self._free[block]
            references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each block, the last first: a tail is reused before its head."""
        references, free = self._references, self._free
        for block in reversed(blocks):
            if block == NULL_BLOCK:
                continue
            left = references[block] - 1
            assert left >= 0, f"block {block} is released more often than held"
            references[block] = left
            if left == 0:
                free[block] = None

    def give_back(self, blocks: Sequence[int]) -> None:
        """Release blocks whose content is worth nothing: they are taken again before any other."""
        self.release(blocks)
        for block in blocks:
            if not self._references[block]:
                self._free.move_to_end(block, last=False)

    def register(self, block: int, key: bytes) -> bool:
        """Make a held, full block findable; False when another block already stands under the key."""
        if key in self._found:
            return False
        self._found[key] = block
        self._keys[block] = key
        return True

    def withdraw(self, keys: Iterable[bytes]) -> None:
        """Make blocks unfindable whose content cannot be trusted."""
        for key in keys:
            block = self._found.get(key)
            if block is not None:
                self._forget(block, key)

    def forget_all(self) -> None:
        """Make every block unfindable."""
        for key, block in list(self._found.items()):
            self._forget(block, key)

    def _forget(self, block: int, key: bytes) -> None:
        del self._found[key]
        self._keys[block] = None

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """The conservation law: references = holders, free = unreferenced, free + held = total."""
        expected = [0] * (self.num_blocks + 1)
        for blocks in holders:
            for block in blocks:
                expected[block] += block != NULL_BLOCK
        assert self._references == expected, "reference counts differ from the tables that hold the blocks"
        unreferenced = {block for block in range(1, self.num_blocks + 1) if not expected[block]}
        assert set(self._free) == unreferenced, "the free list differs from the blocks without a holder"
        assert self.num_free + self.num_held == self.num_blocks, "free and held blocks do not add up"
        keyed = {key: block for block, key in enumerate(self._keys) if key is not None}
        assert keyed == self._found, "a block's key and the key's block disagree"
