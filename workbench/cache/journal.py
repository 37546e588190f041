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
        key_of = self._pool.key_of
        keyed = [
            (block, key, names[line if len(names) == count else 0])
            for line, block in enumerate(self._pool.next_free(count))
            if (key := key_of(block)) is not None
        ]
        if keyed:
            blocks, keys, takers = zip(*keyed, strict=True)
            groups = bytes(map(_group_of, keys))
            self._write(Change.EVICTED, groups, blocks, None, 0, keys, takers, "taken")

    def reserved(
        self, group: int, blocks: Sequence[int], places: Sequence[int], names: Sequence[str]
    ) -> None:
        """Blocks were taken for these places in the tables of these requests."""
        groups = bytes((group,)) * len(blocks)
        self._write(Change.RESERVED, groups, blocks, places, 1, None, names, "to be written")

    def reused(self, group: int, table: Sequence[int], name: str) -> None:
        """The blocks of a hit are held by now."""
        places = [place for place, block in enumerate(table) if block != NULL_BLOCK]
        self._write_as_is(Change.REUSED, group, [table[p] for p in places], places, name, "prefix found")

    def cached(
        self,
        group: int,
        blocks: Sequence[int],
        places: Sequence[int],
        keys: Sequence[bytes],
        names: Sequence[str],
    ) -> None:
        """Blocks were made findable, each held by the request that wrote it."""
        self._write(Change.CACHED, bytes((group,)) * len(blocks), blocks, places, 1, keys, names, "full")

    def released(self, group: int, table: Sequence[int], name: str, reason: str) -> None:
        """A whole table was given back, the tail before its head."""
        places = [place for place in range(len(table) - 1, -1, -1) if table[place] != NULL_BLOCK]
        self.gave_back(group, [table[place] for place in places], places, name, reason)

    def gave_back(
        self, group: int, blocks: Sequence[int], places: Sequence[int], name: str, reason: str
    ) -> None:
        """Some blocks of one request's table were given back, in this order."""
        self._write_as_is(Change.RELEASED, group, blocks, places, name, reason)

    def withdrawing(self, keys: Iterable[bytes], reason: str) -> None:
        """Keys are about to be forgotten."""
        found = {key: block for key in keys if (block := self._pool.find(key)) is not None}
        blocks, groups = list(found.values()), bytes(map(_group_of, found))
        holders = [self._pool.references(block) for block in blocks]
        self._write(Change.WITHDRAWN, groups, blocks, None, holders, list(found), [""] * len(blocks), reason)

    def _write_as_is(
        self, kind: Change, group: int, blocks: Sequence[int], places: Sequence[int], name: str, reason: str
    ) -> None:
        """One request's blocks, with the holders and keys they have now."""
        pool, count = self._pool, len(blocks)
        holders = [pool.references(block) for block in blocks]
        keys = [pool.key_of(block) or NO_KEY for block in blocks]
        self._write(kind, bytes((group,)) * count, blocks, places, holders, keys, [name] * count, reason)

    def _write(
        self,
        kind: Change,
        groups: bytes,
        blocks: Sequence[int],
        places: Sequence[int] | None,
        holders: Sequence[int] | int,
        keys: Sequence[bytes] | None,
        names: Sequence[str],
        reason: str,
    ) -> None:
        """Lines of one kind.

        Args:
            places: in the tables of the requests; None where they are not known.
            holders: of each block, or of every one.
            keys: None where there are none.
        """
        count, size = len(blocks), self._block_size
        self._kinds += bytes((kind,)) * count
        self._groups += groups
        self._blocks.extend(blocks)
        self._positions.extend([-1] * count if places is None else [place * size for place in places])
        self._holders.extend([holders] * count if isinstance(holders, int) else holders)
        self._keys += NO_KEY * count if keys is None else b"".join([key[:KEY_BYTES] for key in keys])
        self._names += names
        self._reasons += bytes((REASONS.index(reason),)) * count


def _group_of(key: bytes) -> int:
    """Keys of the groups after the first end in the group's number, which makes their length odd."""
    return key[-1] if len(key) & 1 else 0
