"""What a prompt would find in the prefix cache, where it parts from what is there, and why it found no more.

The lookup is the cache manager's own, over the keys that the trace says can be found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.cache.hashing import root_key
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.trace.pictures.key_chains import KeyChains
from workbench.trace.pictures.namesakes import NOBODY
from workbench.trace.pictures.prefix_log import ROOT, PrefixLog
from workbench.trace.pictures.sequences import NOT_KNOWN, Sequences
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]

Why = Literal[
    "all",  # nothing is missing that could be found
    "off",  # the engine has no prefix cache
    "evicted",  # it was there, and its block was taken
    "withdrawn",  # it was there, and was forgotten on demand or because a step failed
    "elsewhere",  # the same tokens are there under another salt or adapter
    "token",  # what is there goes on with another token
    "not full",  # somebody had some of the same tokens, but not yet a full block
    "group",  # another KV group has not what its window needs
    "new",  # nothing there begins like this, or goes on from here
]
MOST_ADAPTERS = 1024  # numbers that are tried
NO_ADAPTER = -1  # no engine gives this number: nothing is found under it
MOST_SPEAKERS = 20  # requests that are compared with a prompt for a block that was not full


class Answer(NamedTuple):
    """What a prompt would find."""

    tokens: tuple[int, ...]
    num_cached_tokens: int  # that would be reused
    why: Why  # no more
    parts_at: int  # tokens that the prompt has in common with what is there, reused or not
    there: int | None  # "token": the token that is there in its place
    step: int | None  # "evicted", "withdrawn": when
    who: str | None  # the request that it was taken for, or that had the same; "elsewhere": its name
    elsewhere: int  # tokens that would be found there
    reason: str  # "withdrawn": why
    path: tuple[int, ...]  # numbers of the keys that are found


class Cache:
    """The prefix cache of a trace at one step, to be asked."""

    def __init__(
        self,
        log: PrefixLog,
        sequences: Sequences,
        requests: Table,
        config: Mapping[str, Any],
        step: int | None = None,
    ) -> None:
        """`config`: the engine's settings; `step`: as a lookup in this step finds it, None: now."""
        self._log, self._sequences, self._requests, self._step = log, sequences, requests, step
        self.chains = KeyChains.read(config)
        self._caching = bool(config.get("enable_prefix_caching", True))
        windows = config.get("kv_windows") or (None,)
        self._groups = tuple(KVGroup((), window) for window in windows)

    def root(self, salt: str, adapter: str | None = None) -> bytes:
        """The parent of a prompt's first key; `adapter`: by name, None for the base model."""
        assert self.chains is not None, "asked only where keys can be computed"
        extra: tuple[str | int, ...] = ("salt", salt) if salt else ()
        if adapter is not None:
            extra += ("adapter", self._number(adapter, extra))
        return root_key(self.chains.digest, extra)

    def _number(self, adapter: str, extra: tuple[str | int, ...]) -> int:
        """Keys are made of an adapter's number, and a trace has its name: with which do roots come out?

        Of one that was removed and added again, the last.
        """
        assert self.chains is not None
        columns = (self._requests[name].tolist()[::-1] for name in ("adapter", "cache_root"))
        said = [root for name, root in zip(*columns, strict=True) if name == adapter]
        for salted in (extra, ()):  # with the salt that is asked for, or with none
            numbers = {
                root_key(self.chains.digest, (*salted, "adapter", number)).hex(): number
                for number in range(MOST_ADAPTERS)
            }
            if (found := next((numbers[root] for root in said if root in numbers), None)) is not None:
                return found
        return NO_ADAPTER

    def ask(self, tokens: Sequence[int], root: bytes) -> Answer:
        """What a request with this prompt, looked up on its own, would reuse."""
        assert self.chains is not None, "asked only where keys can be computed"
        ids, size = np.array(tokens, np.int64), self.chains.block_size
        keys = self.chains.keys(root, ids)
        found = self._found(root, ids)
        place = found // size
        path = [self._log.number(key) for key in keys[:place]]
        answer = Answer(
            tuple(tokens), found, "all", found, None, None, None, 0, "",
            tuple(key for key in path if key is not None),
        )  # fmt: skip
        if not self._caching:
            return answer._replace(why="off")
        if place == (len(ids) - 1) // size:
            return answer
        return next(self._reasons(answer, ids, root, keys, place), answer._replace(why="new"))

    def _found(self, root: bytes, ids: Longs) -> int:
        assert self.chains is not None
        pool = _Found(self._log, self._step)
        size, digest = self.chains.block_size, self.chains.digest
        cache = CacheManager(pool, self._groups, size, digest, caching=self._caching)
        return cache.lookup(cache.open(root), _Prompt(ids), len(ids)).num_tokens

    # --- why no more ----------------------------------------------------------------------------------

    def _reasons(
        self, answer: Answer, ids: Longs, root: bytes, keys: list[bytes], place: int
    ) -> Iterator[Answer]:
        """The likeliest explanation first."""
        if len(self._groups) > 1 and _Found(self._log, self._step).find(keys[place]) is not None:
            yield answer._replace(why="group")
        if (gone := self._log.gone(keys[place], self._step)) is not None:
            why: Why = "evicted" if gone.event == "evicted" else "withdrawn"
            yield answer._replace(why=why, step=gone.step, who=gone.request_id, reason=gone.reason)
        other, tokens = self._elsewhere(ids, root)
        if tokens > answer.num_cached_tokens:
            yield answer._replace(why="elsewhere", who=other, elsewhere=tokens)
        yield from self._another_token(answer, ids, root, place)

    def _elsewhere(self, ids: Longs, root: bytes) -> tuple[str | None, int]:
        """A request under another root that this prompt would share most with, and how much."""
        said, names = self._requests["cache_root"].tolist(), self._requests["request_id"].tolist()
        roots = {(bytes.fromhex(text) if text else b""): name for text, name in zip(said, names, strict=True)}
        found = [(self._found(other, ids), name) for other, name in roots.items() if other != root]
        tokens, name = max(found, default=(0, None))
        return name, tokens

    def _another_token(self, answer: Answer, ids: Longs, root: bytes, place: int) -> Iterator[Answer]:
        """Among what goes on from here, and what ended within the block: the most tokens in common."""
        assert self.chains is not None
        begin = place * self.chains.block_size
        best: Answer | None = None
        for sequence, name in (*self._next(answer, root, place), *self._same_so_far(answer, root)):
            common = _common(ids, sequence)
            if (name is not None and common <= begin) or (best is not None and common <= best.parts_at):
                continue
            if name is not None and len(sequence) < begin + self.chains.block_size:
                best = answer._replace(why="not full", parts_at=common, who=name)
            else:
                best = answer._replace(why="token", parts_at=common, there=_token(sequence, common))
        if best is not None:
            yield best

    def _next(self, answer: Answer, root: bytes, place: int) -> Iterator[tuple[Longs, None]]:
        """Tokens of what is findable one block beyond the hit."""
        assert self.chains is not None, "asked only where keys can be computed"
        found = self._log.findable(self._step)
        parents = self._log.parents(found.keys, self._sequences, self.chains)
        parent = answer.path[-1] if answer.path else ROOT
        for key in found.keys[parents == parent].tolist():
            writer, _ = self._log.writer(key, self._sequences)
            if self._sequences.root(writer) == root:
                yield self._sequences.of(writer)[: (place + 1) * self.chains.block_size], None

    def _same_so_far(self, answer: Answer, root: bytes) -> Iterator[tuple[Longs, str]]:
        """Requests that had what is found, or, where nothing is, that began last."""
        names = self._requests["request_id"]
        if not answer.path:
            places = list(range(len(names) - 1, -1, -1))
        else:
            lines = self._log.speakers(answer.path[-1], self._step)[:MOST_SPEAKERS]
            places = [self._log.whose(line, self._sequences) for line in lines]
        same = [p for p in dict.fromkeys(places) if p != NOBODY and self._sequences.root(p) == root]
        for place in same[:MOST_SPEAKERS]:
            yield self._sequences.of(place, self._step), names[place]


class _Found(BlockPool):
    """A pool that only knows which keys are found."""

    def __init__(self, log: PrefixLog, step: int | None) -> None:
        super().__init__(0)
        self._log, self._there = log, log.is_there(step)

    def find(self, key: bytes) -> int | None:
        # Keys of the groups after the first end in the group's number, which makes their length odd.
        number = self._log.number(key, key[-1] if len(key) & 1 else 0)
        return None if number is None or not self._there[number] else number + 1


class _Prompt(NamedTuple):
    """What the cache manager reads tokens from."""

    ids: Longs

    def token_bytes(self, begin: int, end: int) -> bytes:
        return self.ids[begin:end].astype("<i4").tobytes()


def _common(one: Longs, other: Longs) -> int:
    """Leading tokens in which two agree."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size


def _token(sequence: Longs, place: int) -> int | None:
    known = place < len(sequence) and sequence[place] != NOT_KNOWN
    return int(sequence[place]) if known else None
