"""How much is drafted follows what steps cost and how often drafts were right."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workbench.speculate.pace import HOLDS, HOLDS_NONE, LEAST_SEEN, LONGEST_REST, REST, SHORT_REST, Pace

MOST = 5


def taught(rows: int, cost: Callable[[int], float]) -> tuple[Pace, np.ndarray]:
    pace, everybody = Pace(512, MOST), np.arange(rows)
    for row in everybody.tolist():
        pace.enter(row)
    assert not pace.wanted(everybody).any(), "what a step costs has not been seen"
    for tokens in (rows, rows + 1, 2 * rows, 4 * rows, 6 * rows):
        for _ in range(LEAST_SEEN):
            pace.took(tokens, cost(tokens), tokens - rows)
    return pace, everybody


def verify(pace: Pace, rows: np.ndarray, right: int, times: int = 12) -> None:
    for _ in range(times):
        pace.verified(rows, np.full(len(rows), MOST), np.full(len(rows), right))


def steps_to_a_trial(pace: Pace, rows: np.ndarray) -> int:
    """`pace` has just said that nobody is to draft."""
    steps = pace.holds
    while not pace.wanted(rows).any():
        steps += pace.holds
        assert steps < 10 * LONGEST_REST, "nobody tries again"
    return steps


def flat(tokens: int) -> float:
    return 1e-3


def by_the_token(tokens: int) -> float:
    return 1e-3 * tokens


def test_drafts_that_are_right_are_wanted_in_full_where_tokens_are_free() -> None:
    pace, rows = taught(3, flat)
    verify(pace, rows, MOST)
    assert (pace.wanted(rows) == MOST).all()


@pytest.mark.parametrize("rows", [1, 40, 256])
def test_nothing_is_drafted_where_a_step_costs_by_the_token(rows: int) -> None:
    pace, everybody = taught(rows, by_the_token)
    verify(pace, everybody, MOST - 1)
    for _ in range(600):
        assert not pace.wanted(everybody).any()


def test_fewer_are_drafted_the_less_they_are_right_and_none_where_they_never_are() -> None:
    pace, rows = taught(4, lambda tokens: 1e-3 + 5e-5 * tokens)
    for row, right in enumerate((5, 2, 1, 0)):
        verify(pace, rows[row : row + 1], right)
    wanted = pace.wanted(rows).tolist()
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[0] == MOST
    assert wanted[3] == 0
    assert len(set(wanted)) > 2


def test_who_drafts_no_more_tries_again_ever_more_rarely_and_comes_back() -> None:
    pace, rows = taught(1, lambda tokens: 1e-3 + 5e-5 * tokens)
    verify(pace, rows, 0)
    tries, step = [], 0
    while step < 8000:
        if pace.wanted(rows).any():
            tries.append(step)
            pace.verified(rows, np.array([1]), np.array([0]))
        step += pace.holds
    gaps = np.diff(tries)
    assert (gaps[1:] >= gaps[:-1]).all()
    assert 3 < len(tries) < 20
    assert gaps.max() <= LONGEST_REST + HOLDS_NONE + HOLDS
    verify(pace, rows, MOST)
    assert pace.wanted(rows).all()


def test_a_pause_of_somebody_elses_does_not_stop_drafts() -> None:
    pace, rows = taught(1, flat)
    verify(pace, rows, MOST)
    pace.took(6, 5.0, MOST)
    assert pace.wanted(rows).all()


def test_a_new_request_begins_with_what_others_saw() -> None:
    pace, rows = taught(2, lambda tokens: 1e-3 + 2e-4 * tokens)
    verify(pace, rows[:1], 0, times=300)
    pace.enter(1)
    assert not pace.wanted(rows)[1]


def test_a_first_step_that_compiles_something_does_not_stop_drafts() -> None:
    pace, rows = Pace(4, MOST), np.arange(1)
    pace.enter(0)
    for _ in range(LEAST_SEEN):
        pace.took(1, 1e-3, 0)
    assert (pace.wanted(rows) == MOST).all()
    pace.took(1 + MOST, 1.0, MOST)  # a thousand times as long
    verify(pace, rows, MOST)
    assert pace.wanted(rows).any()
    for _ in range(8):
        pace.took(1 + MOST, 10e-3, MOST)  # and this is no pause
    assert not pace.wanted(rows).any()


def test_nobody_running_wants_nothing() -> None:
    """As between an abort of the last request that ran and the end of the step it was in."""
    pace, _ = taught(3, flat)
    for asked in (pace.wanted, pace.by_chance):
        assert len(asked(np.arange(0))) == 0


def test_a_step_that_waits_for_its_drafts_is_told_from_one_that_does_not() -> None:
    """The same tokens cost more where some are drafts: what as many requests cost says little of that."""
    pace = Pace(64, MOST)
    pace.enter(0)
    for _ in range(LEAST_SEEN):
        for tokens in (1, 6, 16, 64):
            pace.took(tokens, 1e-3, 0)
    few = np.arange(1)
    verify(pace, few, MOST)
    assert (pace.wanted(few) == MOST).all()
    for _ in range(20):
        pace.took(1 + MOST, 7e-3, MOST)
    assert not pace.wanted(few).any()


def test_what_drafts_cost_many_requests_is_not_held_against_one() -> None:
    pace, rows = taught(40, lambda tokens: 1e-3 if tokens == 40 else 9e-3)
    verify(pace, rows, MOST)
    assert not pace.wanted(rows).any()
    for _ in range(LEAST_SEEN):
        pace.took(1, 1e-3, 0)
    assert pace.wanted(rows[:1]).any()


def test_a_slow_first_step_makes_no_later_one_take_less_than_no_time() -> None:
    pace, rows = Pace(4, 16), np.arange(1)
    pace.enter(0)
    for seconds in (12e-3, 1e-3, 1e-3):
        pace.took(1, seconds, 0)
    for _ in range(60):
        pace.took(9, 1.5e-3, 8)
        pace.took(1, 1e-3, 0)
        assert (pace._costs.drafting(np.arange(1.0, 40.0)) > 0).all()
    for _ in range(30):
        pace.verified(rows, np.array([16]), np.array([16]))
        pace.took(17, 1.5e-3, 16)
    assert pace.wanted(rows).tolist() == [16]


def test_a_rest_is_counted_in_steps_however_often_it_is_asked() -> None:
    pace, rows = taught(1, lambda tokens: 1e-3 + 5e-5 * tokens)
    verify(pace, rows, 0)
    step = 0
    while not pace.wanted(rows, 1).any():
        step += 1
    assert REST <= step <= REST + 2


def test_a_rest_begins_anew_where_drafts_were_right_in_between() -> None:
    pace, row = taught(1, lambda tokens: 1e-3 if tokens == 1 else 1.8e-3)
    verify(pace, row, 0)
    assert not pace.wanted(row).any()
    assert pace.holds > 2 * SHORT_REST
    verify(pace, row, MOST)
    assert pace.wanted(row).all()
    verify(pace, row, 0)
    assert not pace.wanted(row).any()
    assert steps_to_a_trial(pace, row) <= 2 * SHORT_REST, "what was left of the first rest counts no more"


def test_where_only_many_drafts_can_be_worth_a_step_many_are_tried() -> None:
    """With drafts it takes 2.5 times as long, however many they are: one that is right does not pay."""
    pace, row = taught(1, lambda tokens: 1e-3 if tokens == 1 else 2.5e-3)
    verify(pace, row, 0)
    assert not pace.wanted(row).any()
    assert REST <= steps_to_a_trial(pace, row) <= 2 * REST
    verify(pace, row, MOST)
    assert pace.wanted(row).all()


def test_of_two_for_whom_only_many_drafts_can_be_worth_a_step_one_tries() -> None:
    pace, rows = taught(2, lambda tokens: 1e-3 if tokens == 2 else 2.1e-3)
    verify(pace, rows, 0)
    tried = np.zeros(2, bool)
    for _ in range(60):
        wanted = pace.wanted(rows)
        assert sorted(wanted.tolist()) in ([0, 0], [0, MOST])
        tried |= wanted > 0
    assert tried.all()


def test_trials_of_many_requests_come_together() -> None:
    """Their rests end at any time; a step with one draft is as slow as one with many."""
    pace, rows = taught(64, lambda tokens: 1e-3 if tokens < 80 else 1.3e-3)
    for row in rows.tolist():
        verify(pace, rows[row : row + 1], 0)
        pace._rest[row] = 1 + row  # steps until it tries, each at another time
    trials = 0
    for _ in range(640):
        wanted = pace.wanted(rows, 1)
        if wanted.any():
            trials += 1
            assert pace.holds == 2
            trying = rows[wanted > 0]
            pace.verified(trying, np.ones(len(trying), np.int64), np.zeros(len(trying), np.int64))
    assert 1 < trials <= 640 // 64


def dear(pace: Pace) -> np.ndarray:
    """One row; a step with any drafts takes 4.2 of those without."""
    row = np.arange(1)
    for _ in range(40):  # what takes twice as long as before is believed little by little
        pace.took(1, 1e-3, 0)
        pace.took(1 + MOST, 4.2e-3, MOST)
    return row


def test_a_trial_that_was_right_and_not_worth_it_makes_no_rest_longer() -> None:
    pace = Pace(1, MOST)
    row = dear(pace)
    pace.enter(0)
    verify(pace, row, MOST - 1)
    assert not pace.wanted(row).any(), "four right drafts are not worth a step of 4.2"
    for _ in range(3):
        assert steps_to_a_trial(pace, row) <= SHORT_REST + 2
        verify(pace, row, MOST - 1, times=1)
        assert not pace.wanted(row).any()


ONE, OTHERS = [(0, 4)], [(1, 4), (2, 4), (3, 4)]


@example([(1, 0), (2, 0), (3, 0), *ONE * 9, *OTHERS * 4], 2)  # each as good as the one whose was not worth it
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, MOST)), max_size=40), st.integers(0, 2))
def test_chances_that_are_not_looked_at_again_would_not_have_been_worth_it(
    history: list[tuple[int, int]], known: int
) -> None:
    """Steps take the same all the time. Of two paces one looks each time."""
    costs = (flat, by_the_token, lambda tokens: 1e-3 if tokens <= 4 else 2.2e-3)
    (pace, rows), (looking, _) = (taught(4, costs[known]) for _ in range(2))
    for row, right in history:
        for each in (pace, looking):
            verify(each, rows[row : row + 1], right, times=1)
        looking._vain = None
        assert pace.wanted(rows, 1).tolist() == looking.wanted(rows, 1).tolist()
        assert pace.holds == looking.holds


def test_drafts_are_looked_at_again_when_steps_without_any_take_longer() -> None:
    pace = Pace(1, MOST)
    row = dear(pace)
    pace.enter(0)
    verify(pace, row, MOST - 1)
    assert not pace.wanted(row, 1).any()
    for _ in range(40):
        pace.took(1, 4e-3, 0)
    assert pace.wanted(row, 1).any()


def test_drafts_are_looked_at_again_when_their_cost_was_seen_anew() -> None:
    pace = Pace(1, MOST)
    row = dear(pace)
    pace.enter(0)
    verify(pace, row, MOST - 1)
    assert not pace.wanted(row).any()
    for _ in range(20):
        pace.took(1 + MOST, 1e-3, MOST)
    assert pace.wanted(row).any(), "such a step takes no longer than any other now"
