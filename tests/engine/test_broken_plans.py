"""A plan that is broken off half-way: the engine goes on, and nobody's tokens are other ones."""

from __future__ import annotations

import pytest

from tests.engine.test_laws import ALONE, World, expected, output
from workbench.engine.loop import Engine
from workbench.engine.request import Request

ARRIVALS = 6
CROWDED = {**ALONE, "num_blocks": 14, "budget": 16}


class FailsOnce:
    """First come, first served, but for one question that it does not answer."""

    def __init__(self, at: int) -> None:
        self.left = at

    def key(self, request: Request) -> int:
        self.left -= 1
        if self.left == 0:
            raise ValueError("no answer")
        return request.arrival


def crowd(policy: object, depth: int) -> tuple[World, Engine, list[Request]]:
    world = World({**CROWDED, "policy": policy})
    made = [world.request(number, [number, 2, 3, 4, 5], 12, (), 0) for number in range(ARRIVALS)]
    for request in made:
        world.scheduler.add(request)
    return world, Engine(world.scheduler, world.runner, depth), made


def check_ends(made: list[Request], depth: int) -> None:
    """Only who was in a step in flight ends with it."""
    assert {request.finish_reason for request in made} <= {"length", "error" if depth else "length"}
    for request in made:
        if request.finish_reason == "length":
            assert output(request) == expected(request)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("question", range(1, 9))
def test_a_policy_that_raises_in_a_plan_leaves_an_engine_that_goes_on(depth: int, question: int) -> None:
    world, engine, made = crowd(FailsOnce(ARRIVALS + question), depth)
    raised = 0
    while world.scheduler.has_work:
        try:
            engine.advance()
        except ValueError:
            raised += 1
        world.scheduler.check()
        world.steps += 1
        assert world.steps < 500, "somebody starves"
    assert raised == 1
    assert world.scheduler.cache.pool.num_held == 0
    check_ends(made, depth)


class FailingLookups:
    """Looks up prefixes, but for the one that it fails at."""

    def __init__(self, lookup, at: int) -> None:
        self._lookup = lookup
        self._left = at

    def __call__(self, *args):
        self._left -= 1
        if self._left == 0:
            raise MemoryError
        return self._lookup(*args)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("at", range(1, 6))
def test_whoever_was_admitted_by_half_a_plan_waits_again(depth: int, at: int) -> None:
    world, engine, made = crowd("fcfs", depth)
    world.scheduler.cache.lookup = FailingLookups(world.scheduler.cache.lookup, at)
    raised = 0
    while world.scheduler.has_work:
        try:
            engine.advance()
        except MemoryError:
            raised += 1
        world.scheduler.check()
    assert raised == 1
    check_ends(made, depth)
