"""Who holds which blocks: prefix lookup, reservation, registration and release, for each KV group.

A KV group is a set of layers that share a layout and a block table. A prefix is found in the cache as far
as all groups agree. Knows tokens only as bytes to hash; decides nothing about who runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple, Protocol

from workbench.cache.hashing import TOKEN_BYTES, Chains, HashFunction
from workbench.cache.kv_events import CACHE_RESET, KVEventLog
from workbench.cache.pool import NULL_BLOCK, BlockPool, Forgotten


class KVGroup(NamedTuple):
    """Layers that share a block table."""

    layers: tuple[int, ...]
    window: int | None = None  # sliding window in tokens; None: every earlier token is attended


@dataclass(slots=True)
class BlockTables:
    """What one request holds."""

    root: bytes  # parent key of its first block
    blocks: list[list[int]]  # per group; entry i holds tokens [i * block_size, (i + 1) * block_size)
    keys: list[bytes] = field(default_factory=list)  # of its full blocks, as far as they were needed
    num_registered: int = 0  # leading blocks that were found or made findable
    name: str = ""  # whose; the log of KV events tells it

    def copy(self) -> BlockTables:
        blocks = [list(table) for table in self.blocks]
        return BlockTables(self.root, blocks, list(self.keys), self.num_registered, self.name)


class Hit(NamedTuple):
    """The longest prefix that every group finds."""

    num_tokens: int
    blocks: list[list[int]]  # per group; NULL_BLOCK where the group needs nothing


class TokenSource(Protocol):
    """The tokens of a request, read only when a key has to be computed."""

    def token_bytes(self, begin: int, end: int) -> bytes:
        """Tokens [begin, end) as little-endian int32."""
        ...


class CacheManager:
    """Block tables over one pool. With `caching` off nothing is ever found."""

    def __init__(
        self,
        pool: BlockPool,
        groups: Sequence[KVGroup],
        block_size: int,
        digest: HashFunction,
        *,
        caching: bool,
    ) -> None:
        self.pool = pool
        self.groups = tuple(groups)
        self.block_size = block_size
        self.caching = caching
        self._sliding = any(group.window is not None for group in groups)
        self._digest = digest
        self._chains = Chains(digest, block_size)
        self._log: KVEventLog | None = None  # there while somebody observes

    def watch(self, on: bool) -> KVEventLog | None:
        """Write down what happens to blocks, or stop; the log it is written to."""
        if not on:
            self._log = None
        elif self._log is None:
            self._log = KVEventLog(self.pool)
        return self._log

    def copy(self) -> CacheManager:
        """The same cache over a copy of its pool, watched by nobody."""
        other = copy(self)
        other.pool, other._log = self.pool.copy(), None
        return other

    def open(self, root: bytes) -> BlockTables:
        """Empty tables for a new request."""
        return BlockTables(root, [[] for _ in self.groups])

    def lookup(self, tables: BlockTables, source: TokenSource, num_tokens: int) -> Hit:
        """The longest cached prefix of a request of `num_tokens`; its last token is always computed."""
        limit = (num_tokens - 1) // self.block_size if self.caching else 0
        found = limit
        while True:
            agreed = found
            for index, group in enumerate(self.groups):
                found = self._longest(tables, source, index, group.window, found)
            if found == agreed:
                break
        blocks = [
            self._hit_blocks(tables, index, group.window, found) for index, group in enumerate(self.groups)
        ]
        return Hit(found * self.block_size, blocks)

    def _longest(
        self, tables: BlockTables, source: TokenSource, index: int, window: int | None, limit: int
    ) -> int:
        # All of them at once: whoever is looked up is about to be computed, and registered, as a whole.
        self._extend(tables, source, limit)
        if window is None:
            find = self.pool.find
            for place, key in enumerate(tables.keys[:limit]):
                if find(_group_key(key, index)) is None:
                    return place
            return limit
        # A window needs only the blocks that reach into it: look for a long enough run from the right.
        needed = -(-(window - 1) // self.block_size)
        run = 0
        for place in range(limit - 1, -1, -1):
            run = run + 1 if self.pool.find(_group_key(tables.keys[place], index)) is not None else 0
            if run >= needed:
                return place + run
        return run

    def keys_of(self, tables: BlockTables, source: TokenSource, count: int) -> list[bytes]:
        """Keys of the first `count` blocks' tokens; none where nothing is cached."""
        if not self.caching:
            return []
        self._extend(tables, source, count)
        return tables.keys[:count]

    def _extend(self, tables: BlockTables, source: TokenSource, count: int) -> None:
        known = len(tables.keys)
        if known < count:
            tokens = source.token_bytes(known * self.block_size, count * self.block_size)
            self._chains.extend(tables.keys, tables.root, tokens)

    def _hit_blocks(self, tables: BlockTables, index: int, window: int | None, count: int) -> list[int]:
        first = self._first_needed(window, count * self.block_size)
        blocks = [NULL_BLOCK] * min(first, count)
        for place in range(first, count):
            block = self.pool.find(_group_key(tables.keys[place], index))
            assert block is not None, "a block of the hit vanished during the lookup"
            blocks.append(block)
        return blocks

    def _first_needed(self, window: int | None, start: int) -> int:
        # The query at `start` attends to (start - window, start].
        return 0 if window is None else max(0, start - window + 1) // self.block_size

    def admit(self, tables: BlockTables, hit: Hit, num_tokens: int) -> bool:
        """Hold the hit and reserve blocks up to `num_tokens`; False, and nothing done, when blocks lack."""
        pool = self.pool
        wanted = -(-num_tokens // self.block_size)
        revived = 0  # free blocks of the hit: holding them takes them off the free list
        for blocks in hit.blocks:
            revived += sum(1 for block in blocks if block != NULL_BLOCK and not pool.references(block))
        fresh = sum(wanted - len(blocks) for blocks in hit.blocks)
        if fresh + revived > pool.num_free:
            return False
        for table, blocks in zip(tables.blocks, hit.blocks, strict=True):
            pool.hold(block for block in blocks if block != NULL_BLOCK)
            table[:] = blocks
        if self._log is not None:
            for group, blocks in enumerate(hit.blocks):
                self._log.reused(group, blocks, tables.name)
        for group, table in enumerate(tables.blocks):
            table += self._take(wanted - len(table), tables, group)
        tables.num_registered = hit.num_tokens // self.block_size
        return True

    def grow(self, tables: BlockTables, start: int, num_tokens: int) -> list[list[int]] | None:
        """Reserve blocks up to `num_tokens` for a step that begins at `start`.

        The new blocks for each group; None, and nothing taken, when the pool lacks them.
        """
        wanted = -(-num_tokens // self.block_size)
        if self._sliding:
            self._slide(tables, start)
        fresh = 0
        for table in tables.blocks:
            fresh += wanted - len(table)
        if fresh > self.pool.num_free:
            return None
        grown = []
        for group, table in enumerate(tables.blocks):
            blocks = self._take(wanted - len(table), tables, group)
            table += blocks
            grown.append(blocks)
        return grown

    def _take(self, count: int, tables: BlockTables, group: int) -> list[int]:
        """Blocks for the end of a table."""
        if self._log is None or not count:
            return self.pool.take(count)
        forgotten: list[Forgotten] = []
        blocks, first, name = self.pool.take(count, forgotten), len(tables.blocks[group]), (tables.name,)
        self._log.evicted(forgotten, name)
        self._log.reserved(group, blocks, range(first, first + count), name)
        return blocks

    def shrink(self, tables: BlockTables, num_tokens: int) -> None:
        """Give back the blocks behind the first `num_tokens`: drafts were written there, and rejected."""
        kept = -(-num_tokens // self.block_size)
        for group, table in enumerate(tables.blocks):
            behind = table[kept:]
            del table[kept:]
            self.pool.give_back(behind)
            if self._log is not None and behind:
                places = range(kept, kept + len(behind))
                self._log.gave_back(group, behind, places, tables.name, "drafts rejected")

    def _slide(self, tables: BlockTables, start: int) -> None:
        """Give back blocks that left the window of a step that begins at `start`."""
        for index, (group, table) in enumerate(zip(self.groups, tables.blocks, strict=True)):
            if group.window is None:
                continue
            place = min(self._first_needed(group.window, start), len(table)) - 1
            left = []
            while place >= 0 and table[place] != NULL_BLOCK:
                left.append(table[place])
                table[place] = NULL_BLOCK
                place -= 1
            self.pool.release(left)  # the last of `left` is the oldest token's
            if self._log is not None and left:
                places = range(place + 1, place + 1 + len(left))
                self._log.gave_back(index, left[::-1], places, tables.name, "out of the window")

    def register(self, tables: BlockTables, source: TokenSource, num_tokens: int) -> list[bytes]:
        """Make the full blocks of the first `num_tokens` tokens findable; the keys that are new.

        The caller vouches that every one of these tokens is written by a step launched by now.
        """
        full = num_tokens // self.block_size
        first = tables.num_registered
        if not self.caching or full <= first:
            return []
        self._extend(tables, source, full)
        new = []
        for index, table in enumerate(tables.blocks):
            places = []
            for place in range(first, full):
                key = tables.keys[place]
                if index:
                    key = _group_key(key, index)
                if table[place] != NULL_BLOCK and self.pool.register(table[place], key):
                    new.append(key)
                    places.append(place)
            if self._log is not None and places:
                keys = [_group_key(tables.keys[place], index) for place in places]
                blocks = [table[place] for place in places]
                self._log.cached(index, blocks, places, keys, (tables.name,))
        tables.num_registered = full
        return new

    def cross(self, tables: Sequence[BlockTables], tokens: bytes) -> tuple[list[int], list[bytes]] | None:
        """Many decodes at a block boundary at once: register the block each filled, give each the next.

        What `register` and `grow` do, for requests that want one block each; `tokens` are the filled
        blocks' tokens, one request after the other, as int32 bytes. The new blocks and the new keys; None,
        and nothing done, where the general way is needed.
        """
        pool, digest, width = self.pool, self._digest, self.block_size * TOKEN_BYTES
        if len(self.groups) > 1 or self._sliding or len(tables) > pool.num_free:
            return None
        keys: list[bytes] = []
        if self.caching:
            if any(len(each.keys) + 1 != len(each.blocks[0]) for each in tables):
                return None
            begin = 0
            for each in tables:
                known = each.keys
                key = digest((known[-1] if known else each.root) + tokens[begin : begin + width])
                begin += width
                known.append(key)
                each.num_registered += 1
                if pool.register(each.blocks[0][-1], key):
                    keys.append(key)
        names: tuple[str, ...] = ()
        if self._log is not None:
            names = tuple([each.name for each in tables])
            self._tell_filled(self._log, tables, keys, names)
        forgotten: list[Forgotten] | None = None if self._log is None else []
        blocks = pool.take(len(tables), forgotten)
        for each, block in zip(tables, blocks, strict=True):
            each.blocks[0].append(block)
        if self._log is not None:
            self._log.evicted(forgotten or (), names)
            self._log.reserved(0, blocks, [len(each.blocks[0]) - 1 for each in tables], names)
        return blocks, keys

    def _tell_filled(
        self, log: KVEventLog, tables: Sequence[BlockTables], keys: list[bytes], names: tuple[str, ...]
    ) -> None:
        """Each table's last block is full, and findable by now if its key is among `keys`."""
        if len(keys) < len(tables):  # caching is off, or other blocks stand under the other keys
            mine = [self.pool.key_of(each.blocks[0][-1]) is not None for each in tables]
            tables, names = list(compress(tables, mine)), tuple(compress(names, mine))
        if keys:
            filled = [each.blocks[0][-1] for each in tables]
            log.cached(0, filled, [len(each.blocks[0]) - 1 for each in tables], keys, names)

    def release(self, tables: BlockTables, reason: str = "released") -> None:
        """Give every block back. Keys stay known, so that the request finds its blocks if it comes back.

        `reason` is for those who watch.
        """
        for group, table in enumerate(tables.blocks):
            self.pool.release(table)
            if self._log is not None:
                self._log.released(group, table, tables.name, reason)
            table.clear()
        tables.num_registered = 0

    def withdraw(self, keys: Iterable[bytes]) -> None:
        """Make blocks unfindable whose content cannot be trusted."""
        if self._log is not None:
            keys = list(keys)
            self._log.withdrawing(keys, "step failed")
        self.pool.withdraw(keys)

    def forget_all(self) -> None:
        """Make every block unfindable."""
        if self._log is not None:
            self._log.withdrawing(self.pool.keys(), CACHE_RESET)
        self.pool.forget_all()

    def check(self, holders: Iterable[BlockTables]) -> None:
        """The conservation law over all tables; raises AssertionError where it is broken."""
        self.pool.check(table for tables in holders for table in tables.blocks)


def _group_key(key: bytes, index: int) -> bytes:
    return key + bytes((index,)) if index else key
