"""The suffix drafter, and what it looks up in, against searches through all tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from workbench.speculate.drafter import Ask
from workbench.speculate.suffix import FACTOR, KEPT, READ, SuffixDrafter
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

    def enter(self, row: int, token_ids: list[int], root: bytes = b"") -> None:
        self.lengths[row] = len(token_ids)
        self.tokens[row, : len(token_ids)] = token_ids
        self.drafter.enter(row, self.tokens[row, : len(token_ids)], root)

    def grow(self, row: int, token_ids: list[int]) -> None:
        self.tokens[row, self.lengths[row] : self.lengths[row] + len(token_ids)] = token_ids
        self.lengths[row] += len(token_ids)

    def say(self, row: int, prompt: list[int], output: list[int], root: bytes = b"") -> None:
        """A request comes and goes."""
        self.enter(row, prompt, root)
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
        kept.append(rows.drafter._pasts.num_tokens)
        for ago in range(30):
            if (begin := 100 * (1 + number - ago)) > 0:
                rows.enter(1, [begin, begin + 1])
                drafted = rows.propose(1, 3) == [begin + 2, begin + 3, begin + 4]
                assert drafted or ago >= 2, "one of the last was forgotten"
                assert not drafted or ago <= 5, "more is kept than there is room for"
    assert max(kept) <= 40 + size + 1
    assert END not in rows.tokens


def test_past_outputs_are_drafted_to_their_own_root_alone() -> None:
    rows, roots = Rows(), (b"", b"a", b"b")
    for number, root in enumerate(roots):
        rows.say(0, [1], [50, 51, 60 + number, 70 + number], root)
    for number, root in enumerate(roots):
        rows.enter(1, [9, 50, 51], root)
        assert rows.propose(1, 4) == [60 + number, 70 + number]
    rows.enter(1, [9, 50, 51], b"c")
    assert rows.propose(1, 4) == []
    rows.say(0, [1], [55, 56, 80], b"c")
    rows.grow(1, [55, 56])
    assert rows.propose(1, 1) == [80], "its root's first output came while it ran"


def test_outputs_of_many_roots_take_no_more_room_than_those_of_one() -> None:
    rows, size = Rows(kept=40), 7
    for number in range(30):
        rows.say(0, [1], list(range(10, 10 + size)), bytes([number]))
        assert rows.drafter._pasts.num_tokens <= 40
        drafted = []
        for earlier in range(number + 1):
            rows.enter(1, [10, 11], bytes([earlier]))
            drafted.append(rows.propose(1, 2) == [12, 13])
        assert drafted == [earlier > number - 40 // (size + 1) for earlier in range(number + 1)]


def test_outputs_wait_until_somebody_asks_and_are_read_in_parts() -> None:
    rows, size = Rows(kept=KEPT), READ // 8
    for number in range(20):
        rows.say(0, [1], list(range(300 * number, 300 * number + size)))
    assert rows.drafter._pasts.num_tokens == 0
    found = []
    rows.enter(1, [300 * 19])
    for number in range(1, 4):
        rows.grow(1, [300 * 19 + number])
        found.append(rows.propose(1, 1) == [300 * 19 + number + 1])
    assert found == [False, False, True], "eight are read at a time"


def test_who_asks_twice_hears_the_same_twice_though_outputs_wait() -> None:
    rows, size = Rows(kept=KEPT), READ // 8
    for number in range(20):
        rows.say(0, [1], list(range(300 * number, 300 * number + size)))
    rows.enter(1, [300 * 19, 300 * 19 + 1])
    assert rows.propose(1, 1) == rows.propose(1, 1) == []
    rows.grow(1, [300 * 19 + 2])
    assert rows.propose(1, 1) == rows.propose(1, 1) == []
    rows.grow(1, [300 * 19 + 3])
    assert rows.propose(1, 1) == rows.propose(1, 1) == [300 * 19 + 4]


def test_of_a_long_output_its_end_is_kept() -> None:
    rows = Rows(kept=100)
    rows.say(0, [1], list(range(100, 399)))
    rows.enter(1, [390, 391])
    assert rows.propose(1, 1) == [392]


def test_outputs_that_nobody_asks_for_are_forgotten_unread() -> None:
    rows = Rows(kept=40)
    for number in range(100):
        rows.say(0, [1], list(range(100 * number, 100 * number + 8)))
    assert sum(len(token_ids) for _, token_ids in rows.drafter._unread) == 80
    rows.enter(1, [9900, 9901])
    assert rows.propose(1, 1) == [9902]


def test_one_output_of_another_root_does_not_displace_all_that_many_left() -> None:
    rows = Rows(kept=40)
    for number in range(4):
        rows.say(0, [1], list(range(100 * number, 100 * number + 8)))
    rows.say(0, [1], list(range(10)), b"a")
    assert rows.drafter._pasts.num_tokens <= 40
    drafted = []
    for number in range(4):
        rows.enter(1, [100 * number, 100 * number + 1])
        drafted.append(rows.propose(1, 1) == [100 * number + 2])
    assert drafted == [False, False, True, True]


def test_a_row_whose_past_was_forgotten_and_began_anew_follows_the_new_one() -> None:
    rows = Rows(kept=40)
    rows.say(0, [1], list(range(10, 20)), b"a")
    rows.enter(1, [10, 11, 12, 13], b"a")
    assert rows.propose(1, 2) == [14, 15]
    for root in (b"b", b"c", b"d", b"e"):
        rows.say(0, [1], list(range(10, 20)), root)
    rows.say(0, [1], [30, 31, 32, 33, 34, 35, 36], b"a")
    assert rows.propose(1, 2) == []
    rows.grow(1, [30, 31])
    assert rows.propose(1, 2) == [32, 33]


def test_a_row_that_is_given_away_forgets() -> None:
    rows = Rows()
    rows.enter(0, [1, 2, 3, 4, 1, 2])
    assert rows.propose(0, 2) == [3, 4]
    rows.enter(0, [9, 8, 7, 6, 1, 2])
    assert rows.propose(0, 2) == []
