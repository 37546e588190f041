"""Long runs: a real scheduler with a runner that has no model, ten thousand steps in some seconds."""

from __future__ import annotations

from functools import cache

from tests.trace.house import House, build
from workbench.engine.events import Event

STEPS, BLOCKS = 10_000, 100_000
ADAPTERS = ("poet", "thief", "cook")


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


@cache
def full_run() -> tuple[Event, ...]:
    """The events of 10,000 steps that fill a cache of 100,000 blocks, up to evictions, with three adapters.

    It ends while 256 requests with long prompts hold a third of the blocks.
    """
    house = build(budget=16_384, blocks=BLOCKS, rows=256, adapters=ADAPTERS, max_loras=3, max_length=1024)
    while len(house.runner.plans) < STEPS:
        _conversations(house, 32, own=130)
        house.run()
    _conversations(house, 256, own=560)
    for _ in range(30):
        house.engine.advance()
    return tuple(house.trace.recording().events)


def _conversations(house: House, count: int, own: int) -> None:
    """Requests with one of eight system prompts of 200 tokens, and so many tokens of their own.

    Three of the eight are of an adapter each.
    """
    for number in range(len(house.requests), len(house.requests) + count):
        adapter = number % 8 if number % 8 < len(ADAPTERS) else None
        root = b"" if adapter is None else ADAPTERS[adapter].encode()
        prompt = [1 + number % 8] * 200 + [100 + number] * own
        house.add(prompt, 200, cache_root=root, adapter=adapter)
