"""All that was ever said before in a text, by what follows it: a suffix automaton with counts.

A state stands for the strings that end at the same places of the text; a transition appends a token; a
state's link leads to the longest of its strings' suffixes that end at more places. A token is added in
amortised constant time (Blumer et al. 1985), and what a text ends with that it holds elsewhere too is one
link away.
Knows token ids; neither requests nor models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ROOT = 0
NOTHING = -1  # the root's link
END = -1  # a token that stands between texts, and is never drafted
COUNTED = 32  # contexts of a token that count it, the longest first: in "aaaa..." there are as many as tokens


class Continuation(NamedTuple):
    """What has most often come next, token by token."""

    token_ids: list[int]
    score: float  # of them, so many are expected to be right: each is, with its share, if all before it are


class Suffixes:
    """One text that grows."""

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]  # by state: token -> state
        self._link = [NOTHING]
        self._length = [0]  # tokens of a state's longest string
        self._count = [0]  # places at which its strings end
        self._last = ROOT  # the state of the whole text

    @property
    def num_tokens(self) -> int:
        return self._length[self._last]

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens to the text."""
        for token_id in token_ids:
            self._append(token_id)

    def _append(self, token_id: int) -> None:
        nexts, link, length = self._next, self._link, self._length
        new = self._add({}, length[self._last] + 1, ROOT, 0)
        state, self._last = self._last, new
        while state != NOTHING and token_id not in nexts[state]:
            nexts[state][token_id] = new
            state = link[state]
        if state != NOTHING:
            found = nexts[state][token_id]
            if length[found] != length[state] + 1:
                found = self._part(found, state, token_id)
            link[new] = found
        self._count_last()

    def _add(self, nexts: dict[int, int], length: int, link: int, count: int) -> int:
        self._next.append(nexts)
        self._length.append(length)
        self._link.append(link)
        self._count.append(count)
        return len(self._link) - 1

    def _part(self, found: int, state: int, token_id: int) -> int:
        """A state of their own for the shorter strings of `found`: they end at one place more from now on."""
        nexts, link = self._next, self._link
        shorter = self._add(dict(nexts[found]), self._length[state] + 1, link[found], self._count[found])
        link[found] = shorter
        while state != NOTHING and nexts[state].get(token_id) == found:
            nexts[state][token_id] = shorter
            state = link[state]
        return shorter

    def _count_last(self) -> None:
        state, count, link = self._last, self._count, self._link
        for _ in range(COUNTED):
            if state == ROOT:
                return
            count[state] += 1
            state = link[state]

    def repeated(self) -> Match:
        """The longest run at the text's end that stands elsewhere in it too."""
        state = max(self._link[self._last], ROOT)
        return Match(state, self._length[state])

    def follow(self, match: Match, token_id: int) -> Match:
        """Another text, which ended with `match`, has one token more: the longest run of it that is here."""
        nexts, link, length = self._next, self._link, self._length
        state, size = match
        while state != ROOT and size <= length[link[state]]:  # it was parted since
            state = link[state]
        while state != NOTHING and token_id not in nexts[state]:
            state = link[state]
            size = length[state] if state != NOTHING else 0
        return Match(ROOT, 0) if state == NOTHING else Match(nexts[state][token_id], size + 1)

    def continued(self, match: Match, most: int, least_chance: float) -> Continuation:
        """Up to `most` tokens behind `match`, as long as they all come with at least that chance."""
        state, chance, score = match.state, 1.0, 0.0
        token_ids: list[int] = []
        while len(token_ids) < most:
            while state != ROOT and not self._next[state]:  # the text's end: as behind what it repeats
                state = self._link[state]
            if state == ROOT:
                break
            token_id, state, share = self._likeliest(state)
            chance *= share
            if token_id == END or chance < least_chance:
                break
            token_ids.append(token_id)
            score += chance
        return Continuation(token_ids, score)

    def _likeliest(self, state: int) -> tuple[int, int, float]:
        """What came next most often, of equals what came first last; its state and its share."""
        count = self._count
        nexts = self._next[state]
        if len(nexts) == 1:
            ((token_id, found),) = nexts.items()
            return token_id, found, 1.0
        token_id, found = max(reversed(nexts.items()), key=lambda item: count[item[1]])
        return token_id, found, count[found] / max(sum(count[each] for each in nexts.values()), 1)


class Match(NamedTuple):
    """A run of tokens that a text holds."""

    state: int
    size: int  # tokens
