"""Drafts what most often followed the longest run of last tokens, in the request itself and in past outputs.

Suffix decoding (Oliaro et al. 2024), with automata for its trees: one a request over all its tokens, one over
the outputs of requests that have ended. The longer the run, the more is drafted, and no more than is likely
enough; of the two drafts the one that is expected to have more tokens right. A step's work is that of its new
tokens, a few microseconds each in plain Python; a request's first draft enters all of its prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints
from workbench.speculate.drafter import Ask
from workbench.speculate.suffixes import END, ROOT, Continuation, Match, Suffixes

FACTOR = 2.0  # drafts for each token of the run: what has stood there for long goes on for long
LEAST_CHANCE = 0.1  # of a draft and all before it
KEPT = 1 << 15  # tokens of past outputs, at most: about a kilobyte each; at least the last half of that

NOWHERE = Match(ROOT, 0)


class Past:
    """Outputs of requests that have ended, the latest ones."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self.suffixes = Suffixes()
        self.generation = 0  # a match is good in its own only
        self._following = Suffixes()  # holds the latter half of the outputs

    def add(self, token_ids: list[int]) -> None:
        """One request's output; where it is longer than what is kept, its end."""
        text = [*token_ids[-self._kept // 2 :], END]
        self.suffixes.extend(text)
        if self.suffixes.num_tokens > self._kept // 2:
            self._following.extend(text)
        if self.suffixes.num_tokens > self._kept:
            self.suffixes, self._following = self._following, Suffixes()
            self.generation += 1


@dataclass(slots=True)
class Row:
    """What is known of the request in a batch row."""

    own: Suffixes
    past: Match  # what its last tokens match of past outputs
    generation: int  # of those


class SuffixDrafter:
    """Suffixes of each batch row, and of what was said before."""

    def __init__(self, max_rows: int, kept: int = KEPT) -> None:
        self._past = Past(kept)
        self._rows: list[Row | None] = [None] * max_rows

    def enter(self, row: int, token_ids: Ints) -> None:
        self._rows[row] = None

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        self._rows[row] = None
        self._past.add(token_ids[num_prompt_tokens:].tolist())

    def propose(self, ask: Ask) -> Proposals:
        columns = zip(ask.rows.tolist(), ask.lengths.tolist(), ask.most.tolist(), strict=True)
        found = [
            self._draft(self._caught_up(row, ask.tokens[row, :length]), most) for row, length, most in columns
        ]
        counts = np.array([len(drafts) for drafts in found], np.int64)
        return Proposals(counts, np.array([token_id for drafts in found for token_id in drafts], np.int32))

    def _caught_up(self, number: int, known: Ints) -> Row:
        """The row with all its tokens entered."""
        row = self._rows[number]
        if row is None:
            row = self._rows[number] = Row(Suffixes(), NOWHERE, self._past.generation)
        suffixes = self._past.suffixes
        if row.generation != self._past.generation:
            row.past, row.generation = NOWHERE, self._past.generation
        new = known[row.own.num_tokens :].tolist()
        row.own.extend(new)
        for token_id in new:
            row.past = suffixes.follow(row.past, token_id)
        return row

    def _draft(self, row: Row, most: int) -> list[int]:
        own = _continued(row.own, row.own.repeated(), most)
        past = _continued(self._past.suffixes, row.past, most)
        return (own if own.score >= past.score else past).token_ids


def _continued(suffixes: Suffixes, match: Match, most: int) -> Continuation:
    return suffixes.continued(match, min(most, int(FACTOR * match.size)), LEAST_CHANCE)
