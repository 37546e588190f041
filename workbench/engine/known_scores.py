"""Logprobs of prompts that were computed before, by the block their tokens fill: beside the prefix cache.

A block's key says all tokens up to its end, and so whose logprobs these are. Knows requests, keys and rows;
nothing of the blocks themselves, without which what is known stays true.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from workbench.cache.manager import CacheManager
from workbench.engine.request import Request
from workbench.engine.result import Scores


class Known(NamedTuple):
    """Of one block's tokens, the prompt's first apart, which nothing predicts."""

    top: int  # best tokens listed of each
    scores: Scores


class KnownScores:
    """As many blocks as the cache has, those that were looked at last."""

    def __init__(self, cache: CacheManager) -> None:
        self._cache = cache
        self._known: OrderedDict[bytes, Known] = OrderedDict()  # oldest first

    def copy(self, cache: CacheManager) -> KnownScores:
        other = KnownScores(cache)
        other._known = self._known.copy()
        return other

    def __len__(self) -> int:
        return len(self._known)

    def forget(self) -> None:
        self._known.clear()

    def keep(self, request: Request) -> None:
        """Learn from a request that has been told of its whole prompt; not of its vocabularies: too large."""
        top = request.params.prompt_logprobs
        if top is None or top < 0:
            return
        size, begin = self._cache.block_size, request.score_from
        told = Scores.joined(request.scores)
        full = min(len(request.tables.keys), request.num_prompt_tokens // size)
        for place in range(full):
            first, end = max(place * size, 1), (place + 1) * size
            if first >= begin:
                self._learn(request.tables.keys[place], Known(top, told.part(first - begin, end - begin)))
        while len(self._known) > self._cache.pool.num_blocks:
            self._known.popitem(last=False)

    def _learn(self, key: bytes, known: Known) -> None:
        before = self._known.get(key)
        self._known[key] = known if before is None or before.top < known.top else before
        self._known.move_to_end(key)

    def tell(self, request: Request) -> None:
        """A waiting request hears what is known of its prompt, from the first token that it lacks."""
        top, size = request.params.prompt_logprobs, self._cache.block_size
        if top is None or top < 0 or not self._known:
            return
        full = request.num_prompt_tokens // size
        keys = self._cache.keys_of(request.tables, request, full)
        for place in range(request.num_scored // size, len(keys)):
            known = self._known.get(keys[place])
            if known is None or known.top < top:
                return
            self._known.move_to_end(keys[place])
            skipped = request.num_scored - max(place * size, 1)
            request.scores.append(known.scores.part(skipped, size, top))
            request.num_scored = (place + 1) * size
