"""A long run: a real scheduler with a runner that has no model, ten thousand steps in some seconds."""

from __future__ import annotations

from functools import cache

from tests.trace.house import House, build
from workbench.engine.events import Event

STEPS = 10_000


@cache
def long_run(blocks: int = 260) -> tuple[Event, ...]:
    """The events of 10,000 steps of up to 32 requests each, with preemptions and shared prefixes.

    Args:
        blocks: of the KV cache, of 4 tokens each.
    """
    house = build(budget=96, blocks=blocks, rows=32, max_steps=None)
    while len(house.runner.plans) < STEPS:
        _wave(house)
    return tuple(house.trace.recording().events)


def _wave(house: House) -> None:
    """A hundred requests, to their ends."""
    for number in range(100):
        house.add([1] * 20 + [2 + number % 40] * (number % 23), 20 + number % 50, ignore_eos=True)
    house.run()
