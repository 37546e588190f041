"""What happened to every block, told line by line, adds up with every step's numbers of blocks."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import BLOCK_SIZE, House, build
from tests.trace.test_sums import workloads
from workbench.cache.manager import KVGroup

FULL_AND_SLIDING = (KVGroup((0,)), KVGroup((1,), window=6))


def check(house: House, blocks: int) -> None:
    """Replays the table, block by block, and compares with every step."""
    b, s = house.trace.columns.blocks, house.trace.columns.steps
    holders: Counter[int] = Counter()
    keys: dict[int, tuple[int, str]] = {}
    line, lines = (
        0,
        [dict(zip(b, row, strict=True)) for row in zip(*(c.tolist() for c in b.values()), strict=True)],
    )
    assert b["step"].tolist() == sorted(b["step"].tolist())
    for place, step in enumerate(s["step"].tolist()):
        while line < len(lines) and lines[line]["step"] <= step:
            apply(lines[line], holders, keys)
            line += 1
        held = sum(count > 0 for count in holders.values())
        assert (held, len(keys)) == (s["blocks_held"][place], s["blocks_cached"][place]), step
        assert s["blocks_free"][place] == blocks - held
    for rest in lines[line:]:
        apply(rest, holders, keys)
    pool = house.engine.scheduler.cache.pool
    assert (sum(count > 0 for count in holders.values()), len(keys)) == (pool.num_held, pool.num_cached)


def apply(line: dict, holders: Counter[int], keys: dict[int, tuple[int, str]]) -> None:
    """One line, and whether it could happen."""
    block, event = line["block"], line["event"]
    key = None if line["key"] is None else (line["group"], line["key"])  # the groups' keys begin alike
    if event == "reserved":
        assert holders[block] == 0
        assert block not in keys
        holders[block] = 1
    elif event == "reused":
        assert keys[block] == key
        holders[block] += 1
    elif event == "cached":
        assert block not in keys
        assert key is not None
        assert key not in keys.values()
        keys[block] = key
    elif event == "released":
        holders[block] -= 1
        assert keys.get(block) == key
    else:
        assert event in ("evicted", "withdrawn")
        assert keys.pop(block) == key
    assert holders[block] == line["holders"] >= 0
    assert (line["request_id"] is None) == (event == "withdrawn")
    assert line["position"] % BLOCK_SIZE == 0


@given(
    work=workloads(),
    budget=st.integers(3, 40),
    blocks=st.integers(14, 30),
    depth=st.integers(0, 2),
    abort_at=st.integers(0, 40),
    fail_at=st.none() | st.integers(0, 30),
    windowed=st.booleans(),
)
def test_block_by_block_the_table_adds_up_with_every_step(
    work: list[tuple[list[int], int]],
    budget: int,
    blocks: int,
    depth: int,
    abort_at: int,
    fail_at: int | None,
    windowed: bool,
) -> None:
    blocks *= 1 + windowed
    house = build(
        budget=budget, blocks=blocks, depth=depth, groups=FULL_AND_SLIDING if windowed else (KVGroup((0,)),)
    )
    house.runner.fail_at = fail_at
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[::4])
    house.run()
    check(house, blocks)
    assert house.engine.scheduler.forget_prefixes()
    check(house, blocks)


def test_what_is_found_is_what_was_reused() -> None:
    house = build(budget=12, blocks=14)
    for number in range(8):
        house.add([1] * 8 + [2 + number] * (number + 1), max_tokens=6, ignore_eos=True)
    house.run()
    tables = house.trace.columns
    b, c = tables.blocks, tables.step_requests
    for step in tables.steps["step"]:
        mine = (b["step"] == step) & (b["event"] == "reused")
        assert BLOCK_SIZE * mine.sum() == c["cached"][c["step"] == step].sum()
    for event in ("reserved", "reused", "cached", "evicted", "released"):
        assert (b["event"] == event).any(), f"this run has no block {event}"


def test_the_life_of_a_block_by_hand() -> None:
    """Three blocks of 4: a request fills one and a half, another needs all three."""
    house = build(blocks=3)
    house.add([1, 2, 3, 4, 5], max_tokens=2, ignore_eos=True)
    house.run()
    house.add([1, 2, 3, 4, 6], max_tokens=1)
    house.run()
    house.add([7] * 9, max_tokens=1)
    house.run()
    b = house.trace.blocks
    told = list(zip(b.step, b.event, b.block, b.position, b.request_id, b.holders, b.reason, strict=True))
    assert told == [
        (0, "reserved", 1, 0, "0", 1, "to be written"),
        (0, "reserved", 2, 4, "0", 1, "to be written"),
        (0, "cached", 1, 0, "0", 1, "full"),
        (2, "released", 2, 4, "0", 0, "length"),  # after step 1, so that step 2 is the first to find it so
        (2, "released", 1, 0, "0", 0, "length"),
        (2, "reused", 1, 0, "1", 1, "prefix found"),
        (2, "reserved", 3, 4, "1", 1, "to be written"),
        (3, "released", 3, 4, "1", 0, "length"),
        (3, "released", 1, 0, "1", 0, "length"),
        (3, "evicted", 1, 0, "2", 0, "taken"),  # its position is that of what was in it
        (3, "reserved", 2, 0, "2", 1, "to be written"),
        (3, "reserved", 3, 4, "2", 1, "to be written"),
        (3, "reserved", 1, 8, "2", 1, "to be written"),
        (3, "cached", 2, 0, "2", 1, "full"),
        (3, "cached", 3, 4, "2", 1, "full"),
        (4, "released", 1, 8, "2", 0, "length"),
        (4, "released", 3, 4, "2", 0, "length"),
        (4, "released", 2, 0, "2", 0, "length"),
    ]
    keys = [house.engine.scheduler.cache.pool.key_of(block) for block in (2, 3)]
    assert b.key[b.event == "cached"].tolist()[1:] == [key[:8].hex() for key in keys if key is not None]


def test_lookups_are_told_with_what_was_asked_and_found() -> None:
    house = build(budget=8, blocks=6)
    house.add([1] * 8, max_tokens=1)
    house.run()
    house.add([1] * 9, max_tokens=1)
    house.add([1] * 9, max_tokens=1, skip_reading_prefix_cache=True)
    house.run()
    events = house.trace.events
    looked = events[events.kind == "prefix_looked_up"]
    assert looked.request_id.tolist() == ["0", "1"]  # the last one does not read the cache
    assert looked.detail.tolist() == ['{"num_queried": 8, "num_hit": 0}', '{"num_queried": 9, "num_hit": 8}']


def test_positions_are_missing_where_the_trace_began_later() -> None:
    house = build(blocks=3)
    house.add([1] * 9, max_tokens=1)
    house.run()
    with house.trace.record() as t:
        house.add([2] * 9, max_tokens=1)
        house.run()
    evicted = t.blocks[t.blocks.event == "evicted"]
    assert len(evicted) == 2
    assert evicted.position.isna().all()


@pytest.mark.parametrize("steps", [0, 3])
def test_who_comes_to_watch_in_mid_run_is_told_all_that_follows(steps: int) -> None:
    house = build(watched=False)
    for number in range(4):
        house.add([number] * 9, max_tokens=9, ignore_eos=True)
    for _ in range(steps):
        house.engine.step()
    house.emitter.add(house.trace.observer)
    house.run()
    b, s = house.trace.columns.blocks, house.trace.columns.steps
    taken = (b["event"] == "reserved") | ((b["event"] == "reused") & (b["holders"] == 1))
    freed = (b["event"] == "released") & (b["holders"] == 0)
    change = [(taken & (b["step"] == step)).sum() - (freed & (b["step"] == step)).sum() for step in s["step"]]
    assert np.diff(s["blocks_held"]).tolist() == change[1:]


def test_nothing_is_written_down_while_nobody_watches() -> None:
    house = build(watched=False)
    house.add([1] * 9)
    house.run()
    assert house.engine.scheduler.cache._log is None
    house.emitter.add(house.trace.observer)
    assert house.engine.scheduler.cache._log is not None
    house.emitter.remove(house.trace.observer)
    assert house.engine.scheduler.cache._log is None
