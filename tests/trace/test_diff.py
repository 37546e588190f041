"""Diff names the first decision in which two runs part, and no time is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.trace.house import House, build
from workbench.trace import Trace


def fill(house: House, lengths: tuple[int, ...] = (3, 9, 6)) -> House:
    for number, length in enumerate(lengths):
        house.add([number + 1] * length, max_tokens=5, ignore_eos=True)
    return house.run()


def test_equal_runs_differ_in_nothing_and_say_so() -> None:
    difference = Trace.diff(fill(build()).trace, fill(build()).trace)
    assert not difference
    assert str(difference) == "no difference: both runs decided alike"


def test_times_are_no_decisions() -> None:
    slow = build()
    slow.runner.clock.now = 5000.0
    fill(slow)
    for _ in range(100):
        slow.runner.clock()
    assert not Trace.diff(fill(build()).trace, slow.trace)


@pytest.mark.parametrize(
    ("table", "field", "line", "value"),
    [
        ("step_requests", "scheduled", 3, 77),
        ("step_requests", "start", 0, 5),
        ("step_requests", "dropped", 1, True),
        ("tokens", "token_id", 4, 4711),
        ("steps", "budget", 2, 1),
        ("steps", "waiting", 1, 9),
        ("steps", "status", 3, "failed"),
        ("requests", "finish_reason", 1, "abort"),
        ("requests", "priority", 2, -1),
    ],
)
def test_a_changed_decision_is_named(table: str, field: str, line: int, value: object) -> None:
    a, b = fill(build()).trace, fill(build()).trace
    columns = getattr(b.columns, table)
    was = columns[field][line]
    columns[field][line] = value
    difference = Trace.diff(a, b)
    assert (difference.table, difference.field) == (table, field)
    assert difference.a == was
    assert difference.b == value
    if "step" in columns:
        assert difference.step == columns["step"][line]
        assert f"step {difference.step}" in str(difference)
    if "request_id" in columns:
        assert difference.request_id == columns["request_id"][line]
    assert repr(value) in str(difference)
    back = Trace.diff(b, a)
    assert (back.a, back.b) == (difference.b, difference.a)


@pytest.mark.parametrize("name", ["scheduled_s", "e2e_s", "queue_s", "tpot_s"])
def test_a_changed_time_is_not(name: str) -> None:
    a, b = fill(build()).trace, fill(build()).trace
    b.columns.requests[name][:] = 1e9
    assert not Trace.diff(a, b)


def test_the_earliest_step_is_named_whatever_the_table() -> None:
    a, b = fill(build()).trace, fill(build()).trace
    b.columns.step_requests["scheduled"][-1] += 1
    b.columns.steps["running"][1] += 1
    difference = Trace.diff(a, b)
    assert (difference.table, difference.field, difference.step) == ("steps", "running", 1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: fill(build(budget=7)), "step 0"),  # the second prompt gets 4 tokens, not 9
        (lambda: fill(build(), (3, 9)), "step 0"),
        (lambda: fill(build(), (3, 9, 7)), "step 1, request 2: step_requests.scheduled is 2 and 3"),
    ],
)
def test_runs_that_part_say_where(other: Callable[[], House], says: str) -> None:
    difference = Trace.diff(fill(build()).trace, other().trace)
    assert difference
    assert str(difference).startswith(says)


def test_a_smaller_budget_gives_the_second_request_less() -> None:
    difference = Trace.diff(fill(build(budget=16)).trace, fill(build(budget=10)).trace)
    assert difference.table == "step_requests"
    assert (difference.step, difference.request_id, difference.field) == (0, "1", "scheduled")
    assert (difference.a, difference.b) == (9, 7)
    assert str(difference) == "step 0, request 1: step_requests.scheduled is 9 and 7"


def test_a_run_that_goes_on_longer_says_what_the_other_lacks() -> None:
    short, long = build(), build()
    for house, most in ((short, 4), (long, 6)):
        house.add([1, 2, 3], max_tokens=most, ignore_eos=True)
        house.run()
    for name in ("max_tokens", "finish_reason"):  # known from the start; what follows from it is asked for
        long.trace.columns.requests[name][:] = short.trace.columns.requests[name]
    difference = Trace.diff(short.trace, long.trace)
    assert (difference.table, difference.step, difference.a) == ("step_requests", 4, None)
    assert "is missing and" in str(difference)
    assert Trace.diff(long.trace, short.trace).b is None


def test_two_scopes_of_one_engine_compare_from_their_first_steps() -> None:
    house = build()
    scopes = []
    for _ in range(2):
        house.engine.scheduler.cache.pool.forget_all()
        with house.trace.record() as t:
            house.add([5] * 3, max_tokens=3, ignore_eos=True)
            house.run()
        scopes.append(t)
    assert scopes[0].steps.step.tolist() != scopes[1].steps.step.tolist()
    difference = Trace.diff(*scopes)
    # The blocks are other ones, for those freed first are taken last; all else is the same.
    assert not difference or difference.table == "blocks"


def test_empty_traces_do_not_differ() -> None:
    assert not Trace.diff(Trace(), Trace())
    assert Trace.diff(Trace(), fill(build()).trace)


def test_what_differs_is_plain() -> None:
    a, b = fill(build()).trace, fill(build(budget=10)).trace
    difference = Trace.diff(a, b)
    assert not isinstance(difference.a, np.generic)
