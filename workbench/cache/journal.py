"""What happened to blocks, as columns: written by the cache manager, read once a step.

Knows blocks, keys and the names of holders; decides nothing. Nothing here runs while nobody observes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from workbench.cache.pool import NULL_BLOCK, BlockPool

KEY_BYTES = 8  # of a key are kept: enough to tell the blocks of a run apart
NO_KEY = bytes(KEY_BYTES)
REASONS = (
    "to be written",
    "prefix found",
    "full",
    "taken",
    "out of the window",
    "preempted",
    "stop",
    "length",
    "abort",
    "error",
    "released",
    "step failed",
    "cache reset",
)


class Change(IntEnum):
    """What can happen to a block."""

    RESERVED = 0  # taken off the free list, to be written; 1 holder
    REUSED = 1  # held once more, because a prefix was found in it
    CACHED = 2  # full, and findable by its key from now on
    EVICTED = 3  # its key is forgotten, because it is taken for something else
    RELEASED = 4  # held once less; with no holder left it is free, and findable as long as it has a key
    WITHDRAWN = 5  # its key is forgotten, because its content is not to be found any more


class Changes(NamedTuple):
    """Columns with a line for each change, in order."""

    kinds: bytes  # [n]; `Change`
    groups: bytes  # [n]; KV group
    blocks: array[int]  # [n]
    positions: array[int]  # [n]; of the block's first token in its request; -1: not said, as it was before
    holders: array[int]  # [n]; how many hold the block afterwards
    keys: bytes  # [n * KEY_BYTES]; how the block's key begins, NO_KEY where it has none
    names: list[str]  # [n]; the request on whose behalf, "" for nobody's
    reasons: bytes  # [n]; place in REASONS


class Journal:
    """Changes since they were taken last."""

    def __init__(self, pool: BlockPool, block_size: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._begin()

    def _begin(self) -> None:
        self._kinds, self._groups, self._keys = bytearray(), bytearray(), bytearray()
        self._blocks, self._positions, self._holders = array("i"), array("i"), array("i")
        self._reasons = bytearray()
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._kinds)

    def take(self) -> Changes:
        """What was written since the last time; the journal is empty afterwards."""
        changes = Changes(
            bytes(self._kinds),
            bytes(self._groups),
            self._blocks,
            self._positions,
            self._holders,
            bytes(self._keys),
            self._names,
            bytes(self._reasons),
        )
        self._begin()
        return changes

    def taking(self, count: int, names: Sequence[str]) -> None:
        """The next `count` free blocks are about to be taken, by as many requests, or all by one."""
        blocks = self._pool.next_free(count)
        keys = [self._pool.key_of(block) for block in blocks]
        evicted = [line for line, key in enumerate(keys) if key is not None]
        if not evicted:
            return
        takers = names if len(names) == count else [names[0]] * count
        self._write(
            Change.EVICTED,
            bytes([_group_of(keys[line]) for line in evicted]),
            [blocks[line] for line in evicted],
            None,
            [takers[line] for line in evicted],
            "taken",
        )

    def reserved(self, group: int, first: int, blocks: Sequence[int], name: str) -> None:
        """Blocks were taken for the places from `first` on of one request's table."""
        count = len(blocks)
        places = range(first, first + count)
        self._write(Change.RESERVED, bytes((group,)) * count, blocks, places, [name] * count, "to be written")

    def crossing(self, blocks: Sequence[int], places: Sequence[int], names: Sequence[str]) -> None:
        """Blocks were taken, one each for many requests, in the first group."""
        self._write(Change.RESERVED, bytes(len(blocks)), blocks, places, names, "to be written")

    def reused(self, group: int, table: Sequence[int], name: str) -> None:
        """The blocks of a hit are held by now."""
        places = [place for place, block in enumerate(table) if block != NULL_BLOCK]
        count, blocks = len(places), [table[place] for place in places]
        self._write(Change.REUSED, bytes((group,)) * count, blocks, places, [name] * count, "prefix found")

    def cached(self, group: int, blocks: Sequence[int], places: Sequence[int], names: Sequence[str]) -> None:
        """Blocks were made findable."""
        self._write(Change.CACHED, bytes((group,)) * len(blocks), blocks, places, names, "full")

    def released(self, group: int, table: Sequence[int], name: str, reason: str) -> None:
        """A whole table was given back, the tail before its head."""
        places = [place for place in range(len(table) - 1, -1, -1) if table[place] != NULL_BLOCK]
        self.gave_back(group, [table[place] for place in places], places, name, reason)

    def gave_back(
        self, group: int, blocks: Sequence[int], places: Sequence[int], name: str, reason: str
    ) -> None:
        """Some blocks of one request's table were given back, in this order."""
        count = len(blocks)
        self._write(Change.RELEASED, bytes((group,)) * count, blocks, places, [name] * count, reason)

    def withdrawing(self, keys: Iterable[bytes], reason: str) -> None:
        """Keys are about to be forgotten."""
        found = {key: block for key in keys if (block := self._pool.find(key)) is not None}
        groups = bytes([_group_of(key) for key in found])
        self._write(Change.WITHDRAWN, groups, list(found.values()), None, [""] * len(found), reason)

    def _write(
        self,
        kind: Change,
        groups: bytes,
        blocks: Sequence[int],
        places: Sequence[int] | None,
        names: Sequence[str],
        reason: str,
    ) -> None:
        """Lines of one kind; `places` in the tables of the requests, None where they are not known."""
        pool, count = self._pool, len(blocks)
        size, key_of, references = self._block_size, pool.key_of, pool.references
        self._kinds += bytes((kind,)) * count
        self._groups += groups
        self._blocks.extend(blocks)
        self._positions.extend([-1] * count if places is None else [place * size for place in places])
        self._holders.extend([references(block) for block in blocks])
        self._keys += b"".join([(key_of(block) or NO_KEY)[:KEY_BYTES] for block in blocks])
        self._names += names
        self._reasons += bytes((REASONS.index(reason),)) * count


def _group_of(key: bytes | None) -> int:
    """Keys of the groups after the first end in the group's number, which makes their length odd."""
    return key[-1] if key is not None and len(key) & 1 else 0
