"""Diff names the first decision in which two runs part, and no time is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.trace.house import House, build
from workbench.engine.request import Request, Times
from workbench.params import SamplingParams
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


def scopes_of(house: House, work: Sequence[Callable[[House], object]]) -> list[Trace]:
    """A recording of each, on one engine whose cache is forgotten between them."""
    scopes = []
    for each in work:
        house.engine.scheduler.forget_prefixes()
        with house.trace.record() as t:
            each(house)
        scopes.append(t)
    return scopes


def crowd(house: House, tokens: int = 6) -> None:
    """Shared prefixes, chunks and preemptions."""
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=tokens, ignore_eos=True)
    house.run()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("before", [lambda house: None, fill])
def test_two_recordings_of_one_engine_are_alike_where_it_did_the_same(
    depth: int, before: Callable[[House], object]
) -> None:
    house = build(budget=12, blocks=14, depth=depth)
    before(house)
    first, second, other = scopes_of(house, [crowd, crowd, lambda house: crowd(house, tokens=7)])
    assert first.steps.step.tolist() != second.steps.step.tolist()
    assert first.blocks.block.tolist() != second.blocks.block.tolist()
    assert first.runs.preemptions[0] > 0
    assert str(Trace.diff(first, second)) == "no difference: both runs decided alike"
    assert Trace.diff(first, other)


def test_another_block_is_a_difference_where_it_was_another_before() -> None:
    a, b = fill(build()).trace, fill(build()).trace
    b.columns.blocks["block"][1] = b.columns.blocks["block"][0]
    assert Trace.diff(a, b).field == "block"


def one_after_the_other(*ids: str, tokens: int = 3) -> Trace:
    house = build()
    for number, request_id in enumerate(ids):
        request = Request(
            request_id, np.array([1, 2, 3], np.int32), SamplingParams(ignore_eos=True), 3 + tokens + number,
            0, (), Times(house.runner.clock()), house.engine.scheduler.cache.open(b""),
        )  # fmt: skip
        house.engine.scheduler.add(request)
        house.run()
    return house.trace


def test_an_id_that_is_used_again_is_another_request() -> None:
    twice, once = one_after_the_other("a", "a"), one_after_the_other("u", "v")
    assert twice.requests.request_id.tolist() == ["a", "a"]
    for difference in (twice.diff(once), once.diff(twice), twice.diff(one_after_the_other("a", "a"))):
        assert not difference, difference
    longer = twice.diff(one_after_the_other("u", "v", tokens=4))
    assert (longer.table, longer.field, longer.a, longer.b) == ("step_requests", "request_id", "a (2)", "a")


def test_of_an_id_that_is_used_again_the_one_that_differs_is_named() -> None:
    a, b = one_after_the_other("a", "a"), one_after_the_other("u", "v")
    b.columns.tokens["token_id"][-1] += 1
    assert a.diff(b).request_id == "a (2)"


def test_empty_traces_do_not_differ() -> None:
    assert not Trace.diff(Trace(), Trace())
    assert Trace.diff(Trace(), fill(build()).trace)


def test_what_differs_is_plain() -> None:
    a, b = fill(build()).trace, fill(build(budget=10)).trace
    difference = Trace.diff(a, b)
    assert not isinstance(difference.a, np.generic)
