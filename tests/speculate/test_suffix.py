"""The suffix drafter, and what it looks up in, against searches through all tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from workbench.speculate.drafter import Ask
from workbench.speculate.suffix import FACTOR, SuffixDrafter
from workbench.speculate.suffixes import END, Match, Suffixes


def places(text: list[int], run: list[int]) -> list[int]:
    """Where it ends."""
    return [end for end in range(len(run), len(text) + 1) if text[end - len(run) : end] == run]


def longest(text: list[int], other: list[int], times: int) -> int:
    """Tokens of the longest run at the end of `other` that `text` holds so often."""
    sizes = range(min(len(text), len(other)), 0, -1)
    return next((size for size in sizes if len(places(text, other[-size:])) >= times), 0)


def drawn(dice: random.Random, count: int, alphabet: int = 3) -> list[int]:
    return [dice.randrange(alphabet) for _ in range(count)]


@pytest.mark.parametrize("alphabet", [1, 2, 5])
def test_what_a_text_ends_with_is_found_where_it_stood_before(alphabet: int) -> None:
    dice, text, suffixes = random.Random(alphabet), [], Suffixes()
    for _ in range(60):
        more = drawn(dice, dice.randrange(1, 3), alphabet)
        text += more
        suffixes.extend(more)
        assert suffixes.num_tokens == len(text)
        assert suffixes.repeated().size == longest(text, text, 2)


def test_another_text_is_followed_as_far_as_it_is_held() -> None:
    dice = random.Random(1)
    for _ in range(20):
        text, other, suffixes, match = drawn(dice, 40), [], Suffixes(), Match(0, 0)
        suffixes.extend(text)
        for token_id in drawn(dice, 30, 4):
            match = suffixes.follow(match, token_id)
            other.append(token_id)
            assert match.size == longest(text, other, 1)


def test_a_match_that_the_text_outgrew_still_is_one() -> None:
    """The states that earlier matches are in get parted as the text grows."""
    dice = random.Random(3)
    for _ in range(20):
        text, other, suffixes, match = drawn(dice, 10), [], Suffixes(), Match(0, 0)
        suffixes.extend(text)
        for token_id in drawn(dice, 40):
            match = suffixes.follow(match, token_id)
            other.append(token_id)
            assert match.size <= longest(text, other, 1)
            assert not match.size or places(text, other[-match.size :])
            more = drawn(dice, 2)
            text += more
            suffixes.extend(more)
        for token_id in drawn(dice, 3 * len(text)):  # and is as long as can be once nothing grows
            match = suffixes.follow(match, token_id)
            other.append(token_id)
        assert match.size == longest(text, other, 1)


def test_what_comes_most_often_is_drafted_with_its_share() -> None:
    suffixes = Suffixes()
    suffixes.extend([7, 1, 7, 2, 7, 1, 7, 1, 7, 2, 5, 7])
    first = suffixes.continued(suffixes.repeated(), 1, 0.1)
    assert first.token_ids == [1]
    assert first.score == pytest.approx(3 / 5)
    assert suffixes.continued(suffixes.repeated(), 1, 0.7).token_ids == []


class Rows:
    """A drafter, and what its rows hold."""

    def __init__(self, kept: int = 1000) -> None:
        self.drafter = SuffixDrafter(2, kept)
        self.tokens = np.zeros((2, 400), np.int32)
        self.lengths = np.zeros(2, np.int64)

    def enter(self, row: int, token_ids: list[int]) -> None:
        self.lengths[row] = len(token_ids)
        self.tokens[row, : len(token_ids)] = token_ids
        self.drafter.enter(row, self.tokens[row, : len(token_ids)])

    def grow(self, row: int, token_ids: list[int]) -> None:
        self.tokens[row, self.lengths[row] : self.lengths[row] + len(token_ids)] = token_ids
        self.lengths[row] += len(token_ids)

    def say(self, row: int, prompt: list[int], output: list[int]) -> None:
        """A request comes and goes."""
        self.enter(row, prompt)
        self.grow(row, output)
        self.drafter.leave(row, self.tokens[row, : self.lengths[row]], len(prompt))

    def propose(self, row: int, most: int) -> list[int]:
        ask = Ask(np.array([row]), self.lengths[[row]], np.array([most]), self.tokens)
        return self.drafter.propose(ask).token_ids.tolist()


def test_a_repetition_goes_on() -> None:
    rows = Rows()
    rows.enter(0, [5, 6, 7, 5, 6, 7, 5])
    assert rows.propose(0, 7) == [6, 7, 5, 6, 7, 5, 6]


def test_the_longer_the_run_the_more_is_drafted_and_nothing_where_nothing_repeats() -> None:
    said, counts = list(range(10, 60)), []
    for run in range(5):
        rows = Rows()
        rows.enter(0, [*said, 1, *said[:run]])
        drafts = rows.propose(0, 9)
        assert drafts == said[run : run + len(drafts)]
        counts.append(len(drafts))
    assert counts == [min(9, int(FACTOR * run)) for run in range(5)]


def test_past_outputs_are_drafted_and_the_prompts_before_them_are_not() -> None:
    rows = Rows()
    rows.say(0, [1, 2, 3, 4], [50, 51, 52, 53])
    rows.enter(1, [9, 50, 51])
    assert rows.propose(1, 4) == [52, 53], "nothing follows the end of an output"
    rows.grow(1, [8, 1, 2])
    assert rows.propose(1, 4) == []
    rows.grow(1, [50])
    assert rows.propose(1, 2) == [51, 8], "of equals, one's own"


def test_of_past_outputs_the_latest_are_kept() -> None:
    rows, kept, size = Rows(kept=40), [], 7
    for number in range(30):
        first = 100 * (1 + number)
        rows.say(0, [1], list(range(first, first + size)))
        kept.append(rows.drafter._past.suffixes.num_tokens)
        for ago in range(30):
            if (begin := 100 * (1 + number - ago)) > 0:
                rows.enter(1, [begin, begin + 1])
                drafted = rows.propose(1, 3) == [begin + 2, begin + 3, begin + 4]
                assert drafted or ago >= 2, "one of the last was forgotten"
                assert not drafted or ago <= 5, "more is kept than there is room for"
    assert max(kept) <= 40 + size + 1
    assert END not in rows.tokens


def test_a_row_that_is_given_away_forgets() -> None:
    rows = Rows()
    rows.enter(0, [1, 2, 3, 4, 1, 2])
    assert rows.propose(0, 2) == [3, 4]
    rows.enter(0, [9, 8, 7, 6, 1, 2])
    assert rows.propose(0, 2) == []
