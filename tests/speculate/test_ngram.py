"""The n-gram drafter against a search through all tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from workbench.speculate.drafter import Ask
from workbench.speculate.ngram import NgramDrafter

LENGTH = 200


def searched(tokens: list[int], shortest: int, longest: int, most: int) -> list[int]:
    """Of the last tokens the longest run that occurred before, where it did last, and what followed."""
    for size in range(min(longest, len(tokens)), shortest - 1, -1):
        run = tokens[-size:]
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == run:
                period = len(tokens) - end
                return [tokens[end + i % period] for i in range(most)]
    return []


class Rows:
    """A drafter, and what its rows hold."""

    def __init__(self, rows: int, shortest: int, longest: int) -> None:
        self.drafter = NgramDrafter(rows, LENGTH, shortest, longest)
        self.tokens = np.zeros((rows, LENGTH), np.int32)
        self.lengths = np.zeros(rows, np.int64)

    def enter(self, row: int, token_ids: list[int]) -> None:
        self.lengths[row] = len(token_ids)
        self.tokens[row, : len(token_ids)] = token_ids
        self.drafter.enter(row, self.tokens[row, : len(token_ids)], b"")

    def grow(self, row: int, token_ids: list[int]) -> None:
        end = self.lengths[row] + len(token_ids)
        self.tokens[row, self.lengths[row] : end] = token_ids
        self.lengths[row] = end

    def propose(self, rows: list[int], most: int) -> list[list[int]]:
        asked = np.array(rows)
        ask = Ask(asked, self.lengths[asked], np.full(len(rows), most), self.tokens)
        counts, ids = self.drafter.propose(ask)
        return [part.tolist() for part in np.split(ids, counts.cumsum()[:-1])]

    def known(self, row: int) -> list[int]:
        return self.tokens[row, : self.lengths[row]].tolist()


@pytest.mark.parametrize(("shortest", "longest"), [(1, 4), (2, 3), (3, 3), (1, 1)])
def test_drafts_are_what_a_search_finds(shortest: int, longest: int) -> None:
    dice, rows = random.Random(longest), Rows(3, shortest, longest)
    found = agreed = 0
    for _ in range(4):  # a row is given away, and holds what it held
        for row in range(3):
            rows.enter(row, [dice.randrange(6) for _ in range(dice.randrange(1, 60))])
        for _ in range(25):
            asked = dice.sample(range(3), dice.randrange(1, 4))  # whoever is not asked catches up later
            for row, drafts in zip(asked, rows.propose(asked, 5), strict=True):
                known = rows.known(row)
                expected = searched(known, shortest, longest, 5)
                found += bool(expected)
                agreed += bool(expected) and drafts == expected
                if drafts:  # two runs may share a slot, and the older be lost: never is anything made up
                    ends = range(shortest, len(known))
                    assert any(known[end - shortest : end] == known[-shortest:] for end in ends)
            for row in range(3):
                rows.grow(row, [dice.randrange(6) for _ in range(dice.randrange(3))])
    assert found > 20
    assert agreed > 0.8 * found


def test_a_repetition_goes_on() -> None:
    rows = Rows(1, 1, 4)
    rows.enter(0, [5, 6, 7, 5, 6, 7, 5])
    assert rows.propose([0], 7) == [[6, 7, 5, 6, 7, 5, 6]]


def test_nothing_is_drafted_where_nothing_repeats() -> None:
    rows = Rows(2, 1, 3)
    rows.enter(0, list(range(40)))
    rows.enter(1, [3])
    assert rows.propose([0, 1], 4) == [[], []]


def test_a_row_that_is_given_away_forgets() -> None:
    rows = Rows(1, 2, 3)
    rows.enter(0, [1, 2, 3, 4, 1, 2])
    assert rows.propose([0], 2) == [[3, 4]]
    rows.enter(0, [9, 8, 7, 6, 1, 2])
    assert rows.propose([0], 2) == [[]]


def test_the_work_of_a_step_is_that_of_its_new_tokens() -> None:
    """However long the request is: what is hashed are the ends that are new, and the last."""
    rows, sizes = Rows(1, 1, 4), []
    hashing = rows.drafter._slots_of
    rows.drafter._slots_of = lambda runs, owners: sizes.append(runs.shape[1]) or hashing(runs, owners)
    rows.enter(0, [1, 2, 3] * 50)
    rows.propose([0], 4)
    for count in (1, 2, 5):
        rows.grow(0, [1] * count)
        rows.propose([0], 4)
    assert sizes == [150, 2, 3, 6]
