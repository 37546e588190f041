"""Drafts what most often followed the longest run of last tokens, in the request itself and in past outputs.

Suffix decoding (Oliaro et al. 2024), with automata for its trees: one a request over all its tokens, one over
the outputs of requests that have ended, for each root (each `cache_salt`) apart: how fast an answer is shows
what it could be drafted from. The longer the run, the more is drafted, and no more than is likely enough; of
the two drafts the one that is expected to have more tokens right. A step's work is that of its new tokens, a
few microseconds each in plain Python; a request's first draft enters all of its prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints
from workbench.speculate.drafter import Ask
from workbench.speculate.suffixes import END, ROOT, Continuation, Match, Suffixes

FACTOR = 2.0  # drafts for each token of the run: what has stood there for long goes on for long
LEAST_CHANCE = 0.1  # of a draft and all before it
KEPT = 1 << 15  # tokens of past outputs, at most: about a kilobyte each; of a single root at least half that

READ = 1 << 11  # tokens of past outputs, at least, that are entered before drafts are found

NOWHERE = Match(ROOT, 0)


class Past:
    """Outputs of requests of one root that have ended, the latest ones."""

    def __init__(self, kept: int, generations: Iterator[int]) -> None:
        """`generations`: numbers that no other past has."""
        self._kept = kept
        self._generations = generations
        self.suffixes = Suffixes()
        self.generation = next(generations)  # a match is good in its own only
        self._following = Suffixes()  # holds the latter half of the outputs

    def add(self, token_ids: list[int]) -> None:
        """One request's output; where it is longer than what is kept, its end."""
        text = [*token_ids[-self._kept // 2 :], END]
        self.suffixes.extend(text)
        if self.suffixes.num_tokens > self._kept // 2:
            self._following.extend(text)
        if self.suffixes.num_tokens > self._kept:
            self.forget()

    def forget(self) -> None:
        """All but the latter half; all, where what is there is less than half of what may be."""
        self.suffixes, self._following = self._following, Suffixes()
        self.generation = next(self._generations)

    @property
    def num_tokens(self) -> int:
        return self.suffixes.num_tokens


class Pasts:
    """One for each root; where they are too much together, what was added to longest ago forgets."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._generations = count()
        self._by_root: dict[bytes, Past] = {}  # what was added to last is last
        self._nothing = Past(kept, self._generations)
        self.num_tokens = 0

    def of(self, root: bytes) -> Past:
        return self._by_root.get(root, self._nothing)

    def add(self, root: bytes, token_ids: list[int]) -> None:
        """One request's output."""
        past = self._by_root.pop(root, None) or Past(self._kept, self._generations)
        self._by_root[root] = past
        before = past.num_tokens
        past.add(token_ids)
        self.num_tokens += past.num_tokens - before
        while self.num_tokens > self._kept and len(self._by_root) > 1:
            self._forget(next(iter(self._by_root)))

    def _forget(self, root: bytes) -> None:
        past = self._by_root[root]
        before = past.num_tokens
        past.forget()
        self.num_tokens += past.num_tokens - before
        if not past.num_tokens:
            del self._by_root[root]


@dataclass(slots=True)
class Row:
    """What is known of the request in a batch row."""

    own: Suffixes
    past: Match  # what its last tokens match of past outputs
    generation: int  # of those


class SuffixDrafter:
    """Suffixes of each batch row, and of what was said before."""

    def __init__(self, max_rows: int, kept: int = KEPT) -> None:
        self._pasts, self._kept = Pasts(kept), kept
        self._unread: deque[tuple[bytes, list[int]]] = deque()  # outputs that wait, by root
        self._num_unread = 0  # tokens of these
        self._asked: tuple[bytes, ...] | None = None  # rows, lengths and roots that were asked for last
        self._rows: list[Row | None] = [None] * max_rows
        self._roots = [b""] * max_rows  # as the row was entered

    def enter(self, row: int, token_ids: Ints, root: bytes) -> None:
        self._rows[row], self._roots[row] = None, root

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        self._rows[row] = self._asked = None
        said = token_ids[num_prompt_tokens:][-(self._kept // 2) :].tolist()  # no more of it is kept
        self._unread.append((self._roots[row], said))
        self._num_unread += len(said)
        while self._num_unread > 2 * self._kept:  # it would be forgotten before it is looked at
            self._num_unread -= len(self._unread.popleft()[1])

    def _read(self) -> None:
        """Enter what was said since; what takes long, in parts."""
        read = 0
        while self._unread and read < READ:
            root, token_ids = self._unread.popleft()
            self._pasts.add(root, token_ids)
            read += len(token_ids)
        self._num_unread -= read

    def propose(self, ask: Ask) -> Proposals:
        asked = (ask.rows.tobytes(), ask.lengths.tobytes(), *(self._roots[row] for row in ask.rows.tolist()))
        if asked != self._asked:  # who asks twice, to see beforehand what comes, hears the same twice
            self._asked = asked
            self._read()
        columns = zip(ask.rows.tolist(), ask.lengths.tolist(), ask.most.tolist(), strict=True)
        found = [self._draft(row, ask.tokens[row, :length], most) for row, length, most in columns]
        counts = np.array([len(drafts) for drafts in found], np.int64)
        return Proposals(counts, np.array([token_id for drafts in found for token_id in drafts], np.int32))

    def _draft(self, number: int, known: Ints, most: int) -> list[int]:
        past = self._pasts.of(self._roots[number])
        row = self._caught_up(number, known, past)
        own = _continued(row.own, row.own.repeated(), most)
        others = _continued(past.suffixes, row.past, most)
        return (own if own.score >= others.score else others).token_ids

    def _caught_up(self, number: int, known: Ints, past: Past) -> Row:
        """The row with all its tokens entered."""
        row = self._rows[number]
        if row is None:
            row = self._rows[number] = Row(Suffixes(), NOWHERE, past.generation)
        if row.generation != past.generation:
            row.past, row.generation = NOWHERE, past.generation
        new = known[row.own.num_tokens :].tolist()
        row.own.extend(new)
        for token_id in new:
            row.past = past.suffixes.follow(row.past, token_id)
        return row


def _continued(suffixes: Suffixes, match: Match, most: int) -> Continuation:
    return suffixes.continued(match, min(most, int(FACTOR * match.size)), LEAST_CHANCE)
