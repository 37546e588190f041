"""A recording plays again to the same decisions, whatever happened in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.house import BLOCK_SIZE, MAX_LENGTH, House, Thing, build
from workbench.cache.manager import KVGroup
from workbench.engine.events import EngineStarted, RequestArrived
from workbench.sim.replay import replay
from workbench.trace import Trace


def house_of(
    budget: int = 12, blocks: int = 14, depth: int = 0, windows: tuple[int | None, ...] = (None,)
) -> House:
    """A house that says its settings by the names an engine says them."""
    groups = [KVGroup((layer,), window) for layer, window in enumerate(windows)]
    house = build(budget=budget, blocks=blocks * len(groups), depth=depth, groups=groups)
    config = {
        "model": "fake", "device": "cpu", "num_blocks": blocks * len(groups), "block_size": BLOCK_SIZE,
        "max_num_seqs": 8, "max_num_batched_tokens": budget, "max_model_len": MAX_LENGTH,
        "kv_windows": windows,
    }  # fmt: skip
    house.emitter(EngineStarted(house.runner.clock(), config))
    return house


def mixed(house: House) -> House:
    """Prefixes, chunks, preemptions, an abort, EOS, stop ids and a stop string."""
    for number in range(8):
        request = house.add(
            [1] * 8 + [2 + number] * (number + 1),
            max_tokens=8,
            ignore_eos=number % 2 == 0,
            stop_token_ids=list(range(20)) if number == 3 else None,
            min_tokens=2 if number == 3 else 0,
        )
        if number == 5:
            request.stop_check = lambda token_ids: "found" if len(token_ids) == 4 else None
    for _ in range(3):
        house.engine.advance()
    house.engine.abort(house.requests[:1] + house.requests[7:])
    house.add([1] * 8 + [40], max_tokens=2)
    return house.run()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_same_settings_decide_the_same(depth: int) -> None:
    house = mixed(house_of(depth=depth))
    totals = house.trace.runs.iloc[0]
    assert totals.preemptions > 0
    assert totals.cached_tokens > 0
    again = replay(house.trace)
    assert str(Trace.diff(house.trace, again)).startswith("no difference")
    assert again.requests.finish_reason.tolist() == house.trace.requests.finish_reason.tolist()
    assert set(again.requests.finish_reason) == {"length", "stop", "abort"}
    assert again.requests.stop_reason[5] == "found"


def test_a_recorded_folder_replays(tmp_path: Path) -> None:
    house = house_of(depth=1)
    with house.trace.record(path=tmp_path):
        mixed(house)
    assert not Trace.diff(house.trace, replay(Trace.load(tmp_path)))


SALTS = st.sampled_from([b"", b"", b"one", b"another"])


@settings(max_examples=80)
@given(
    work=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 20), st.integers(1, 12), st.integers(0, 3), SALTS),
        min_size=1, max_size=10,
    ),
    budget=st.integers(3, 40), blocks=st.integers(14, 30), depth=st.integers(0, 2),
    pauses=st.lists(st.integers(0, 4), min_size=10, max_size=10),
    abort_at=st.integers(0, 30), fail_at=st.none() | st.integers(0, 20), reset=st.booleans(),
    windows=st.sampled_from([(None,), (6,), (None, 6), (5, None, 9)]),
)  # fmt: skip
def test_any_run_replays(work, budget, blocks, depth, pauses, abort_at, fail_at, reset, windows) -> None:  # type: ignore[no-untyped-def]
    house = house_of(budget, blocks, depth, windows)
    house.runner.fail_at = fail_at
    for (shared, own, most, later, salt), pause in zip(work, pauses, strict=False):
        house.add([1] * shared + [2 + later] * own, most, cache_root=salt)
        for _ in range(pause):
            if house.engine.scheduler.has_work:
                house.engine.advance()
    for _ in range(abort_at):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[::4])
    house.run()
    if reset:
        assert house.engine.scheduler.forget_prefixes()
    house.add([1] * 10, 3)
    house.run()
    assert str(Trace.diff(house.trace, replay(house.trace))) == "no difference: both runs decided alike"


@settings(max_examples=40)
@given(
    work=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.sampled_from([None, 0, 1, 2, 3])),
                  min_size=1, max_size=12),
    slots=st.integers(1, 3), blocks=st.integers(14, 30), depth=st.integers(0, 2), pause=st.integers(0, 3),
    before=st.lists(st.integers(0, 3), max_size=3), abort_at=st.integers(0, 20),
)  # fmt: skip
def test_any_run_with_adapters_replays(work, slots, blocks, depth, pause, before, abort_at) -> None:  # type: ignore[no-untyped-def]
    """Also where adapters had slots before the recording began."""
    house = build(budget=12, blocks=blocks, depth=depth, adapters="abcd", max_loras=slots, caching=False)
    for adapter in before:
        house.add([1], 1, adapter=adapter)
        house.run()
    config = {"max_num_seqs": 8, "max_num_batched_tokens": 12, "max_model_len": MAX_LENGTH}
    with house.trace.record() as trace:
        house.emitter(EngineStarted(house.runner.clock(), house.config | config))
        for length, most, adapter in work:
            house.add([1] * length, most, adapter=adapter)
            for _ in range(pause):
                house.engine.advance()
        for _ in range(abort_at):
            house.engine.advance()
        house.engine.abort(house.requests[len(before) :: 4])
        house.run()
    assert str(Trace.diff(trace, replay(trace))) == "no difference: both runs decided alike"


def edited() -> House:
    """Somebody moves the last to the front, and gives and takes budget."""
    house = house_of(budget=12)
    for number in range(12):
        house.add([2 + number] * 9, max_tokens=6)
    for budget in (12, 5, 12):
        house.engine.scheduler.set_budget(budget)
        for _ in range(2):
            house.engine.step()
        waiting = list(house.engine.scheduler.waiting)
        assert house.engine.scheduler.reorder(waiting[-1:] + waiting[:-1])
    return house.run()


def test_edits_by_hand_replay(tmp_path: Path) -> None:
    house = edited()
    order = house.trace.requests.sort_values("scheduled_s").request_id.tolist()
    assert order != sorted(order, key=int)
    assert set(house.trace.steps.budget) == {5, 12}
    again = replay(house.trace)
    assert str(Trace.diff(house.trace, again)) == "no difference: both runs decided alike"
    assert set(again.steps.budget) == {5, 12}
    with house.trace.record(path=tmp_path / "later"):
        house.engine.scheduler.set_budget(7)
    assert "budget_changed" in set(Trace.load(tmp_path / "later").events.kind)


def test_another_budget_stands_above_the_one_that_was_set_by_hand() -> None:
    assert set(replay(edited().trace, max_num_batched_tokens=20).steps.budget) == {20}


def test_another_budget_names_the_first_difference() -> None:
    house = mixed(house_of(budget=12))
    again = replay(house.trace, max_num_batched_tokens=10)
    difference = Trace.diff(house.trace, again)
    assert difference.step == 0
    assert difference.field == "scheduled"
    assert (difference.a, difference.b) == (
        2,
        1,
    )  # of the second's 10 tokens 8 are found; 10 - 9 is what is left
    assert again.steps.scheduled.max() <= 10
    assert again.runs.requests.tolist() == [9]
    assert again.requests.finish_reason.notna().all()


def test_a_larger_cache_preempts_nobody() -> None:
    house = mixed(house_of(blocks=14))
    again = replay(house.trace, num_blocks=400)
    assert again.runs.preemptions.tolist() == [0]
    difference = Trace.diff(house.trace, again)
    assert difference
    ended = ~house.trace.requests.finish_reason.isin(["abort"])
    assert again.requests.output_tokens[ended].tolist() == house.trace.requests.output_tokens[ended].tolist()


class Last:
    """The newest first."""

    def key(self, request) -> int:  # type: ignore[no-untyped-def]
        return -request.arrival


@pytest.mark.parametrize("policy", ["priority", Last()])
def test_another_policy_is_followed(policy: object) -> None:
    house = house_of(budget=4)
    for number in range(3):
        house.add([number] * 6, max_tokens=2, ignore_eos=True)
    house.run()
    events = house.trace.recording().events
    urgent = [replace(e, priority=-int(e.request_id)) if isinstance(e, RequestArrived) else e for e in events]
    trace = Trace(None)
    for event in urgent:
        trace.observer(event)
    order = replay(trace, scheduling_policy=policy).step_requests.request_id
    assert order.drop_duplicates().tolist() == ["2", "1", "0"]
    assert replay(trace).step_requests.request_id.drop_duplicates().tolist() == ["0", "1", "2"]


def test_requests_that_may_not_share_blocks_do_not_when_replayed() -> None:
    house = house_of(blocks=40)
    for salt in (b"one", b"another", b"one", b""):
        house.add([1] * 12, max_tokens=1, cache_root=salt)
        house.run()
    found = house.trace.requests.cached_tokens.tolist()
    assert found == [0, 0, 8, 0]
    assert replay(house.trace).requests.cached_tokens.tolist() == found
    roots = house.trace.requests.cache_root
    assert roots.tolist()[:3] == [b"one".hex(), b"another".hex(), b"one".hex()]
    assert roots.isna().tolist() == [False, False, False, True]


def test_windows_come_from_the_trace_and_can_be_changed(tmp_path: Path) -> None:
    house = house_of(blocks=40, windows=(None, 5))
    with house.trace.record(tmp_path):
        mixed(house)
    loaded = Trace.load(tmp_path)
    assert not Trace.diff(house.trace, replay(loaded))
    whole = replay(loaded, kv_windows=(None, None))
    assert whole.steps.blocks_held.max() > house.trace.steps.blocks_held.max()


# --- what cannot be replayed ----------------------------------------------------------------------------


def test_tables_alone_do_not_replay(tmp_path: Path) -> None:
    mixed(house_of()).trace.to_csv(tmp_path)
    with pytest.raises(ValueError, match=r"read from tables and holds no events: record\(path\)"):
        replay(Trace.load(tmp_path))


def test_a_recording_that_begins_in_mid_run_is_refused() -> None:
    house = house_of()
    house.add([1, 2, 3], max_tokens=4, ignore_eos=True)
    house.engine.step()
    with house.trace.record() as t:
        house.run()
    with pytest.raises(ValueError, match="request 0 ran before the recording began"):
        replay(t)


def test_a_ring_that_let_steps_go_is_refused() -> None:
    house = build(max_steps=2)
    house.add([1, 2, 3], max_tokens=6, ignore_eos=True)
    house.run()
    with pytest.raises(ValueError, match="has let 4 older steps go"):
        replay(house.trace, block_size=4, max_num_seqs=8, max_num_batched_tokens=16, max_model_len=96)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"num_blocks": 2}, ValueError, r"may need \d+ blocks, num_blocks is 2"),
        ({"max_model_len": 5}, ValueError, r"may have \d+ tokens, max_model_len is 5"),
        ({"budget": 5}, TypeError, "replay has no 'budget'"),
        ({"scheduling_policy": "lifo"}, ValueError, "lifo"),
        ({"kv_windows": (None, None, None)}, ValueError, r"may need \d+ blocks, num_blocks is 14"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replay(mixed(house_of()).trace, **changes)


def test_a_trace_that_does_not_say_its_settings_asks_for_them() -> None:
    with pytest.raises(ValueError, match=r"does not say (\w+): pass \1="):
        replay(build().trace)


def test_a_policy_that_is_an_object_has_to_be_handed_over() -> None:
    house = house_of(budget=4)
    started = house.trace.recording().events[-1]
    assert isinstance(started, EngineStarted)
    house.emitter(replace(started, config=started.config | {"scheduling_policy": repr(Last())}))
    for number in range(3):
        house.add([number] * 6, max_tokens=2, ignore_eos=True)
    house.run()
    with pytest.raises(ValueError, match=r"policy of its own, <.*Last object.*>.*pass scheduling_policy="):
        replay(house.trace)
    order = replay(house.trace, scheduling_policy=Last()).step_requests.request_id
    assert order.drop_duplicates().tolist() == ["2", "1", "0"]
    assert replay(house.trace, scheduling_policy="fcfs").runs.requests.tolist() == [3]


@pytest.mark.parametrize("depth", [0, 1])
def test_who_waited_for_a_grammar_waits_as_long_again(depth: int) -> None:
    house = house_of(depth=depth)
    late, lost, never, there = Thing(), Thing(), Thing(), Thing(ready=True)
    for need in (late, None, lost, never, there, late):
        house.add([len(house.requests) + 1] * 6, max_tokens=6, need=need)
    for _ in range(3):
        house.engine.advance()
    lost.failure, lost.ready, late.ready = "too many states", True, True
    house.engine.advance()
    house.engine.abort([house.requests[3]])
    house.run()
    again = replay(house.trace)
    assert not Trace.diff(house.trace, again)
    assert again.requests.finish_reason.tolist() == house.trace.requests.finish_reason.tolist()
    assert again.requests.finish_reason.tolist()[2:4] == ["error", "abort"]
    assert again.requests.stop_reason[2] == "too many states"
    waited = house.trace.requests.grammar_s
    assert (waited > 0).tolist() == [True, False, True, True, False, True]
    assert waited[3] == pytest.approx(house.trace.requests.e2e_s[3]), "it ended before it was there"
    assert (waited[[0, 5]] <= house.trace.requests.queue_s[[0, 5]]).all()
