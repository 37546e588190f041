"""What happened to KV blocks: written down by the cache manager as lists it has anyway, read once a step.

Knows blocks, keys and the names of holders; decides nothing. Nothing here runs while nobody observes, and
what a reader can work out is left to the reader: a step of a thousand requests fills dozens of blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from workbench.cache.pool import NULL_BLOCK, BlockPool, Forgotten

Kind = Literal[
    "reserved",  # taken off the free list, to be written; 1 holder
    "reused",  # held once more, because a prefix was found in it
    "cached",  # full, and findable by its key from now on
    "evicted",  # its key is forgotten, because it is taken for something else
    "released",  # held once less; with no holder left it is free, and findable as long as it has a key
    "withdrawn",  # its key is forgotten, because its content is not to be found any more
]
CACHE_RESET = "cache reset"  # the reason where everything was withdrawn on demand
NOBODY = ("",)


class KVEvent(NamedTuple):
    """The same happened to these blocks, in this order.

    A column beside them is as long as they are, or has one value that stands for all, or is empty: not said.
    """

    kind: Kind
    reason: str
    blocks: tuple[int, ...]
    groups: tuple[int, ...]  # KV group
    places: tuple[int, ...]  # in the tables of the requests; not said: as it was said of the block before
    holders: tuple[int, ...]  # how many hold the block afterwards
    keys: tuple[bytes, ...]  # it is found by; b"", and not said: none
    names: tuple[str, ...]  # the request on whose behalf; "" for nobody's


class KVEventLog:
    """What happened since it was taken last."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._events: list[KVEvent] = []

    def __len__(self) -> int:
        return len(self._events)

    def take(self) -> tuple[KVEvent, ...]:
        """What was written since the last time; the log is empty afterwards."""
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def evicted(self, forgotten: Sequence[Forgotten], names: tuple[str, ...]) -> None:
        """Keys were forgotten as blocks were taken, by as many requests as names, or all by one."""
        if not forgotten:
            return
        lines, blocks, keys = zip(*forgotten, strict=True)
        takers = names if len(names) == 1 else tuple([names[line] for line in lines])
        groups = tuple(map(_group_of, keys))
        self._events.append(KVEvent("evicted", "taken", blocks, groups, (), (0,), keys, takers))

    def reserved(
        self, group: int, blocks: Iterable[int], places: Iterable[int], names: tuple[str, ...]
    ) -> None:
        """Blocks were taken for these places in the tables of these requests."""
        self._events.append(
            KVEvent("reserved", "to be written", tuple(blocks), (group,), tuple(places), (1,), (), names)
        )

    def reused(self, group: int, table: Sequence[int], name: str) -> None:
        """The blocks of a hit are held by now."""
        places = [place for place, block in enumerate(table) if block != NULL_BLOCK]
        self._append_as_is("reused", "prefix found", group, [table[place] for place in places], places, name)

    def cached(
        self,
        group: int,
        blocks: Iterable[int],
        places: Iterable[int],
        keys: Iterable[bytes],
        names: tuple[str, ...],
    ) -> None:
        """Blocks were made findable, each held by the request that wrote it."""
        self._events.append(
            KVEvent("cached", "full", tuple(blocks), (group,), tuple(places), (1,), tuple(keys), names)
        )

    def released(self, group: int, table: Sequence[int], name: str, reason: str) -> None:
        """A whole table was given back, the tail before its head."""
        places = [place for place in range(len(table) - 1, -1, -1) if table[place] != NULL_BLOCK]
        self.gave_back(group, [table[place] for place in places], places, name, reason)

    def gave_back(
        self, group: int, blocks: Sequence[int], places: Sequence[int], name: str, reason: str
    ) -> None:
        """Some blocks of one request's table were given back, in this order."""
        self._append_as_is("released", reason, group, blocks, places, name)

    def withdrawing(self, keys: Iterable[bytes], reason: str) -> None:
        """Keys are about to be forgotten."""
        found = {key: block for key in keys if (block := self._pool.find(key)) is not None}
        if not found:
            return
        blocks = tuple(found.values())
        holders = tuple([self._pool.references(block) for block in blocks])
        groups = tuple(map(_group_of, found))
        self._events.append(KVEvent("withdrawn", reason, blocks, groups, (), holders, tuple(found), NOBODY))

    def _append_as_is(
        self, kind: Kind, reason: str, group: int, blocks: Sequence[int], places: Sequence[int], name: str
    ) -> None:
        """One request's blocks, with the holders and keys they have now."""
        if not blocks:
            return
        references, key_of = self._pool.references, self._pool.key_of
        holders = tuple([references(block) for block in blocks])
        keys = tuple([key_of(block) or b"" for block in blocks])
        self._events.append(
            KVEvent(kind, reason, tuple(blocks), (group,), tuple(places), holders, keys, (name,))
        )


def _group_of(key: bytes) -> int:
    """Keys of the groups after the first end in the group's number, which makes their length odd."""
    return key[-1] if len(key) & 1 else 0
