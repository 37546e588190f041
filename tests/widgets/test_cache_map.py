"""The cache map's blocks add up with every step, are the pool's, and say whose they are."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trace.house import BLOCK_SIZE, House, build
from tests.trace.test_blocks import FULL_AND_SLIDING
from tests.trace.test_sums import workloads
from tests.widgets.test_speed import LARGEST, UPDATE_S, best_of_three
from workbench.cache.manager import KVGroup
from workbench.trace import Trace
from workbench.trace.pictures import block_history
from workbench.trace.pictures.block_detail import content
from workbench.trace.pictures.block_history import (
    CACHED,
    FREE,
    HELD,
    HELD_FINDABLE,
    SHARED,
    SHARED_FINDABLE,
    UNKNOWN,
    BlockHistory,
    BlockStates,
)
from workbench.trace.pictures.cache_cells import KINDS, MOST_CELLS, cells
from workbench.trace.pictures.cache_map import draw, picture
from workbench.trace.pictures.cache_sums import timeline
from workbench.trace.pictures.sequences import Sequences
from workbench.trace.report import page
from workbench.trace.schema import Table, Tables
from workbench.widgets import CacheMap, TokenBudget, linked

HOLDERS = (HELD, HELD_FINDABLE, SHARED, SHARED_FINDABLE)
FINDABLE = (CACHED, HELD_FINDABLE, SHARED_FINDABLE)


def busy(depth: int = 0) -> House:
    """A run with shared prefixes, evictions and preemptions."""
    house = build(budget=24, blocks=40, rows=12, depth=depth)
    for number in range(30):
        house.add([1] * 16 + [2 + number % 6] * (number % 23), 12 + number % 9, ignore_eos=True)
    return house.run()


def history_of(tables: Tables) -> BlockHistory:
    history = BlockHistory()
    history.take(tables.blocks, tables.steps)
    return history


def sums(states: BlockStates) -> tuple[int, int, int, int]:
    """Free, held, findable, not known."""
    free = states.count(FREE, CACHED)
    return free, states.count(*HOLDERS), states.count(*FINDABLE), states.count(UNKNOWN)


def columns(steps: Table, place: int) -> tuple[int, int, int]:
    free, held, cached = (int(steps[f"blocks_{name}"][place]) for name in ("free", "held", "cached"))
    return free, held, cached


@given(
    work=workloads(),
    budget=st.integers(3, 40),
    blocks=st.integers(14, 30),
    depth=st.integers(0, 2),
    abort_at=st.integers(0, 40),
    fail_at=st.none() | st.integers(0, 30),
    windowed=st.booleans(),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    every=st.sampled_from([1, 7, 50, block_history.EVERY]),
)
def test_free_and_held_add_up_with_every_step_however_the_table_grew(
    work: list[tuple[list[int], int]],
    budget: int,
    blocks: int,
    depth: int,
    abort_at: int,
    fail_at: int | None,
    windowed: bool,
    cuts: list[int],
    every: int,
) -> None:
    blocks *= 1 + windowed
    groups = FULL_AND_SLIDING if windowed else (KVGroup((0,)),)
    house = build(budget=budget, blocks=blocks, depth=depth, groups=groups)
    house.runner.fail_at = fail_at
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[::4])
    house.run().add([1] * 5, 2)  # and if it is the only one
    tables = house.run().trace.columns
    steps, history = tables.steps, BlockHistory()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_history, "EVERY", every)
        for cut in [*sorted(cuts), len(tables.blocks["step"])]:
            history.take({name: column[:cut] for name, column in tables.blocks.items()}, steps)
        for place, step in enumerate(steps["step"].tolist()):
            states = history.at(step)
            assert sums(states) == (*columns(steps, place), 0), step
            assert states.count(FREE, CACHED, *HOLDERS) == blocks
            assert (
                np.bincount(states.codes, minlength=7).tolist()
                == history.counts(np.array([step]))[0].tolist()
            )


@given(work=workloads(), steps=st.integers(1, 60), depth=st.integers(0, 2))
def test_block_by_block_it_is_the_pool(work: list[tuple[list[int], int]], steps: int, depth: int) -> None:
    house = build(budget=12, blocks=16, depth=depth)
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(steps):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.drain()
    house.engine.abort(house.requests[1::2])  # what happened since is told by then
    tables, pool = house.trace.columns, house.engine.scheduler.cache.pool
    states = history_of(tables).at()
    told = int(tables.blocks["step"][-1]) > int(tables.steps["step"][-1])
    if told or not house.engine.scheduler.has_work:
        assert states.holders.tolist() == [pool.references(block) for block in range(1, 17)]
        assert np.isin(states.codes, FINDABLE).tolist() == [pool.key_of(b) is not None for b in range(1, 17)]


@given(work=workloads(), began=st.integers(0, 25))
def test_a_trace_that_began_later_never_says_what_was_not(
    work: list[tuple[list[int], int]], began: int
) -> None:
    house = build(budget=12, blocks=16, rows=4)
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(began):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    with house.trace.record() as later:
        house.add([1] * 9, 3)
        house.run()
    whole, part = history_of(house.trace.columns), history_of(later.columns)
    for step in later.columns.steps["step"].tolist():
        true, told = whole.at(step), part.at(step)
        known = told.codes != UNKNOWN
        assert (told.codes[known] == true.codes[known]).all()
        assert (told.holders <= true.holders).all()


def test_evicted_are_those_whose_key_was_forgotten_in_this_step() -> None:
    tables = busy().trace.columns
    blocks, history = tables.blocks, history_of(tables)
    assert (blocks["event"] == "evicted").any()
    for step in tables.steps["step"].tolist():
        mine = (blocks["step"] == step) & (blocks["event"] == "evicted")
        assert (np.flatnonzero(history.at(step).evicted) + 1).tolist() == sorted(
            set(blocks["block"][mine].tolist())
        )
    assert not history.at().evicted.any()


def test_cells_of_many_blocks_hold_all_of_them() -> None:
    codes = np.random.default_rng(0).integers(0, 7, 98_765).astype(np.int8)
    holders = codes.astype(np.int64) // 2
    states = BlockStates(3, codes, holders, np.full(len(codes), -1), holders > 2)
    found = cells(states)
    assert len(found.first) <= MOST_CELLS
    assert found.counts.sum() == len(codes)
    for kind, (_, mine, _) in enumerate(KINDS):
        assert found.counts[:, kind].sum() == states.count(*mine)
    assert found.evicted.sum() == (holders > 2).sum()
    part = cells(states, (501, 1400))
    assert part.single
    assert part.first.tolist() == list(range(501, 1401))


def test_each_block_is_drawn_as_what_it_is() -> None:
    tables = busy().trace.columns
    step = int(tables.steps["step"][np.argmax(tables.steps["blocks_held"])])
    states = history_of(tables).at(step)
    svg = draw(cells(states), tables.blocks)
    assert svg.count('data-pick="block:') == 40
    for name, codes, _ in KINDS[:2]:
        (path,) = re.findall(rf'<path class="{name}" d="([^"]+)"', svg)
        assert path.count("M") == states.count(*codes) > 0
    assert svg.count('class="inside"') == states.count(SHARED, SHARED_FINDABLE)
    assert f"held by one request: {states.count(HELD, HELD_FINDABLE)}" in svg
    assert "<title>block 1: " in svg


def test_a_blocks_tokens_chain_and_holders_are_the_requests() -> None:
    house = build(budget=24, blocks=60, rows=12)
    for number in range(9):
        house.add([1] * 9 + [2 + number % 3] * 7, 30, cache_root=b"salted" * (number % 2), ignore_eos=True)
    for _ in range(20):
        house.engine.advance()
    tables = house.trace.columns
    sequences = Sequences()
    sequences.take(tables.requests, tables.tokens)
    requests = {request.request_id: request for request in house.requests}
    seen = 0
    for block in range(1, 61):
        found = content(tables.blocks, sequences, block, None)
        holders = {r.request_id for r in house.requests if block in r.tables.blocks[0]}
        if found is None:
            assert not holders
            continue
        assert set(found.holders) == holders
        owner = requests[found.request_id]
        assert owner.finished or owner.tables.blocks[0][found.position // BLOCK_SIZE] == block
        tokens = house.engine.scheduler.tokens_of(owner).tolist()
        known = sequences.of(found.place).tolist()
        assert known == tokens
        pool = house.engine.scheduler.cache.pool
        assert found.key == (None if (key := pool.key_of(block)) is None else key[:8].hex())
        seen += found.key is not None
        widget = CacheMap(house.trace)
        widget._pick.value = f"block:{block}"
        html = widget.static()
        if found.key is not None:
            keys = [key[:8].hex() for key in owner.tables.keys[: found.position // BLOCK_SIZE + 1]]
            chips = re.findall(r"chip>([0-9a-f]{16})<", html)
            assert chips == keys[-8:]
            assert ("a salt" in html) == bool(owner.tables.root)
        texts = "".join(re.findall(r'<span title="id \d+">([^<]+)</span>', html))
        assert texts == "".join(f"t{token}" for token in known[found.position : found.position + BLOCK_SIZE])
    assert seen > 10


def test_the_slider_the_bars_and_other_widgets_choose_the_step() -> None:
    trace = busy().trace
    widget, budget = linked(trace, CacheMap, TokenBudget)
    last = int(trace.columns.steps["step"][-1])
    assert f"after step {last}:" in widget.static()
    assert (widget.step.min, widget.step.max, widget.step.value) == (0, last, last)
    widget.step.value = 5
    assert widget.selection.step == 5
    assert "KV cache in step 5:" in widget.static()
    assert "Step 5:" in budget.static()
    budget._pick.value = "7"
    assert "KV cache in step 7:" in widget.static()
    assert widget.step.value == 7
    widget._pick.value = "step:3"
    assert budget.selection.step == 3
    widget.now.click()
    assert f"after step {last}:" in widget.static()


def test_a_click_on_many_blocks_zooms_to_single_ones() -> None:
    house = build(blocks=100_000)
    house.add([1] * 30, 9)
    widget = CacheMap(house.run().trace)
    assert widget.static().count('data-pick="blocks:') == MOST_CELLS
    for pick, inside in (
        ("blocks:1:100", 50),
        ("blocks:50001:50100", 50_050),
        ("blocks:99901:100000", 99_999),
    ):
        widget._pick.value = pick
        assert widget.static().count('data-pick="block:') == MOST_CELLS
        assert f'data-pick="block:{inside}"' in widget.static()
        widget.all.click()
    assert widget.static().count('data-pick="blocks:') == MOST_CELLS


def test_it_grows_with_the_run_and_is_what_the_finished_trace_gives() -> None:
    house = build(budget=24, blocks=40, rows=12)
    widget = CacheMap(house.trace)
    for number in range(30):
        house.add([1] * 16 + [2 + number % 6] * (number % 23), 12)
    while house.engine.scheduler.has_work:
        house.engine.advance()
        widget.refresh()
    assert widget.static() == CacheMap(house.trace).static()
    assert repr(widget).startswith("CacheMap(")


def test_the_pages_picture_shows_the_fullest_step() -> None:
    tables = busy().trace.columns
    step = int(tables.steps["step"][np.argmax(tables.steps["blocks_held"])])
    assert f"KV cache in step {step}:" in picture(tables)
    assert picture(Trace().columns) == ""


def full_pool(blocks: int, lines: int) -> tuple[Table, Table]:
    """Tables of a run in which every block was taken, filled and given back, again and again."""
    events = np.array(["reserved", "cached", "released", "evicted"], object)
    turn = np.arange(lines) // blocks % 4
    table: Table = {
        "step": np.arange(lines) * 10_000 // lines,
        "block": np.arange(lines) % blocks + 1,
        "event": events[turn],
        "holders": (turn < 2).astype(np.int64),
        "key": np.array([None, "aa", "aa", "aa"], object)[turn],
        "request_id": np.full(lines, "0", object),
        "position": np.zeros(lines),
        "at_s": np.zeros(lines),
    }
    last = BlockHistory()
    steps = {"step": np.arange(10_000), "blocks_free": np.full(10_000, blocks)}
    steps |= {"blocks_held": np.zeros(10_000, np.int64), "blocks_cached": np.zeros(10_000, np.int64)}
    last.take(table, steps)
    counts = last.counts(steps["step"])
    steps["blocks_held"] = counts[:, HELD:UNKNOWN].sum(axis=1)
    steps["blocks_free"] = blocks - steps["blocks_held"]
    return table, steps


def test_any_step_of_100000_blocks_is_drawn_within_50_ms() -> None:
    blocks, steps = full_pool(100_000, 1_200_000)
    history = BlockHistory()
    history.take(blocks, steps)
    rest = iter((9_321, 17, 5_000))

    def move() -> None:
        step = next(rest)
        drawn = timeline(history, steps, step) + draw(cells(history.at(step)), blocks)
        assert len(drawn) < LARGEST

    assert best_of_three(move) < UPDATE_S
    assert len(draw(cells(history.at(7), (40_001, 41_000)), blocks)) < LARGEST


def test_the_report_has_the_map() -> None:
    tables = busy().trace.columns
    assert picture(tables) in page(tables)
