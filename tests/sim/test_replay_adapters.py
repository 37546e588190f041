"""Adapters that somebody pins, removes and adds again: a replay evicts whom the engine evicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.house import MAX_LENGTH, House, build
from workbench import LoRARequest
from workbench.engine.events import (
    AdapterEvicted,
    AdapterLoaded,
    AdapterPinned,
    AdapterRemoved,
    EngineStarted,
    Event,
)
from workbench.lora.adapters import Adapters
from workbench.loras import Loras
from workbench.sim.replay import replay
from workbench.trace import Trace

SAME = "no difference: both runs decided alike"
NAMES = "abcd"


class Shop:
    """An engine with adapters whose files are but names, and what people do with them."""

    def __init__(self, slots: int, blocks: int = 40, depth: int = 0, caching: bool = True) -> None:
        read = lambda folder: SimpleNamespace(folder=folder, stamp=())  # noqa: E731
        self.adapters = Adapters(Path, read, lambda file: file, slots, 1000)  # all that there are on the host
        self.house: House = build(
            budget=12, blocks=blocks, depth=depth, adapters=self.adapters, max_loras=slots, caching=caching
        )
        built: Any = SimpleNamespace(engine=self.house.engine, adapters=self.adapters)
        self.loras = Loras(built, self.house.runner.clock, self.house.emitter)
        self.house.config |= {"max_num_seqs": 8, "max_num_batched_tokens": 12, "max_model_len": MAX_LENGTH}

    def ask(self, name: str | None, length: int = 3, most: int = 2) -> None:
        number = None
        if name is not None:
            number = self.adapters.add(LoRARequest(name, NAMES.index(name) + 1, name)).number
        root = b"" if number is None else b"%d" % number
        self.house.add([1] * length, most, cache_root=root, adapter=number, ignore_eos=True)

    def pin(self, name: str) -> None:
        self.loras.pin(NAMES.index(name) + 1)

    def remove(self, name: str) -> None:
        self.loras.remove(NAMES.index(name) + 1)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.house.engine.advance()

    def start(self) -> None:
        """The settings, by the names an engine says them."""
        self.house.emitter(EngineStarted(self.house.runner.clock(), self.house.config))


def adapters_in(trace: Trace) -> list[tuple[str, str]]:
    """What happened to which adapter, in order."""
    kinds = (AdapterLoaded, AdapterEvicted, AdapterPinned, AdapterRemoved)
    return [(type(e).__name__, e.adapter) for e in trace.recording().events if isinstance(e, kinds)]


def of(events: list[Event]) -> Trace:
    trace = Trace(None)
    for event in events:
        trace.observer(event)
    return trace


def without_what_people_did(trace: Trace) -> Trace:
    return of([e for e in trace.recording().events if not isinstance(e, AdapterPinned | AdapterRemoved)])


# --- the law --------------------------------------------------------------------------------------------

ACTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from([None, *NAMES]), st.integers(1, 14), st.integers(1, 8)),
    st.tuples(st.just("ask"), st.sampled_from(NAMES), st.just(2), st.just(2)),
    st.tuples(st.sampled_from(["pin", "remove"]), st.sampled_from(NAMES)),
    st.tuples(st.just("step"), st.integers(1, 9)),
)


def act(shop: Shop, what: str, *rest: Any) -> None:
    with suppress(ValueError):  # what an engine refuses: no slot left, in use, not there
        getattr(shop, what)(*rest)


@settings(max_examples=150)
@given(
    before=st.lists(ACTS, max_size=6), acts=st.lists(ACTS, min_size=5, max_size=40),
    slots=st.integers(1, 3), blocks=st.integers(24, 40), depth=st.integers(0, 2),
)  # fmt: skip
def test_any_run_with_pins_and_removals_replays(before, acts, slots, blocks, depth) -> None:  # type: ignore[no-untyped-def]
    """Also where some were pinned, or had slots, before the recording began."""
    shop = Shop(slots, blocks, depth, caching=not before)
    for each in before:
        act(shop, *each)
    shop.house.run()
    with shop.house.trace.record() as trace:
        shop.start()
        shop.ask(None, most=60)  # a copy goes with somebody else's step, and takes that long
        for each in acts:
            act(shop, *each)
        shop.house.run()
    again = replay(trace)
    assert str(Trace.diff(trace, again)) == SAME
    if not before:  # else who was there and went is known as far as it matters
        assert adapters_in(again) == adapters_in(trace)


# --- each for itself ------------------------------------------------------------------------------------


def kept_by_its_pin(shop: Shop) -> None:
    """b makes room for c, though a was used longer ago; then a is let in at once."""
    for name in "abca":
        shop.ask(name)
        shop.step(4)


def given_back(shop: Shop) -> None:
    """c takes the slot of a, which is removed, and b, used longer ago, is let in at once."""
    for name in "aba":
        shop.ask(name)
        shop.step(4)
    shop.remove("a")
    for name in "cb":
        shop.ask(name)
        shop.step(4)


def pinned_and_kept(shop: Shop) -> None:
    shop.adapters.add(LoRARequest("a", 1, "a"))
    shop.pin("a")
    kept_by_its_pin(shop)


@pytest.mark.parametrize("doing", [pinned_and_kept, given_back])
def test_without_what_people_did_to_adapters_a_replay_parts(doing: Callable[[Shop], None]) -> None:
    shop = Shop(slots=2)
    with shop.house.trace.record() as trace:
        shop.start()
        shop.ask(None, most=60)
        doing(shop)
        shop.house.run()
    assert str(Trace.diff(trace, replay(trace))) == SAME
    difference = Trace.diff(trace, replay(without_what_people_did(trace)))
    assert difference.table == "step_requests"


@pytest.mark.parametrize("pinned_first", [True, False])
def test_pins_from_before_the_recording_count_wherever_their_adapters_were_by_then(
    pinned_first: bool, tmp_path: Path
) -> None:
    """Nobody asks for a while it is recorded, and c and b have but one slot for the two of them."""
    shop = Shop(slots=2, caching=False)
    shop.adapters.add(LoRARequest("a", 1, "a"))
    if pinned_first:
        shop.pin("a")
    shop.ask("a")
    shop.house.run()
    if not pinned_first:
        shop.pin("a")
    with shop.house.trace.record(path=tmp_path):
        shop.start()
        shop.ask(None, most=60)
        for name in "bcbc":
            shop.ask(name, most=9)
        shop.house.run()
    trace = Trace.load(tmp_path)
    assert adapters_in(trace)[0] == ("AdapterPinned", "a")
    assert str(Trace.diff(trace, replay(trace))) == SAME
    assert Trace.diff(trace, replay(without_what_people_did(trace)))


def test_a_failed_step_takes_pinned_adapters_off_the_device_as_well() -> None:
    shop = Shop(slots=2, caching=False)
    shop.ask("a")
    shop.house.run()
    shop.pin("a")
    shop.house.runner.fail_at = shop.house.trace.steps.step.max() + 1
    shop.ask(None)
    shop.house.run()
    with shop.house.trace.record() as trace:
        shop.start()
        shop.ask(None, most=60)
        for name in "bcab":
            shop.ask(name, most=9)
        shop.house.run()
    assert [event.slot for event in trace.recording().events if isinstance(event, AdapterPinned)] == [None]
    assert str(Trace.diff(trace, replay(trace))) == SAME


def test_a_ring_remembers_who_is_pinned() -> None:
    shop = Shop(slots=2)
    ring = Trace(max_steps=1)
    shop.house.emitter.add(ring.observer)
    for name in "ab":
        shop.adapters.add(LoRARequest(name, NAMES.index(name) + 1, name))
    shop.pin("a")
    shop.ask("b", most=30)
    shop.ask("a", most=30)
    shop.house.run()
    assert len(ring.steps) == 1
    with ring.record() as later:
        assert adapters_in(later) == [("AdapterPinned", "a"), ("AdapterLoaded", "a")]
    shop.remove("a")
    with ring.record() as later:
        assert adapters_in(later) == []


def test_the_events_table_tells_of_pins_and_removals(tmp_path: Path) -> None:
    shop = Shop(slots=2)
    with shop.house.trace.record(path=tmp_path):
        shop.adapters.add(LoRARequest("a", 1, "a"))
        shop.pin("a")
        shop.ask("a")
        shop.house.run()
        shop.remove("a")
    events = Trace.load(tmp_path).events.set_index("kind")
    assert json.loads(events.detail["adapter_pinned"]) == {"adapter": "a", "slot": None}
    [slot] = [json.loads(events.detail["adapter_loaded"])["slot"]]
    assert json.loads(events.detail["adapter_removed"]) == {"adapter": "a", "slot": slot}


# --- other settings -------------------------------------------------------------------------------------


def run_with_a_pin() -> Trace:
    """Two slots, and one of them is not given away."""
    shop = Shop(slots=2)
    with shop.house.trace.record() as trace:
        shop.start()
        pinned_and_kept(shop)
        shop.house.run()
    return trace


def test_more_slots_than_there_were_are_used() -> None:
    trace = run_with_a_pin()
    assert ("AdapterEvicted", "b") in adapters_in(trace)
    evicted = {name for kind, name in adapters_in(replay(trace, max_loras=3)) if kind == "AdapterEvicted"}
    assert evicted == set()


def test_too_few_slots_for_what_was_pinned_are_refused() -> None:
    trace = run_with_a_pin()
    with pytest.raises(
        ValueError, match=r"request 1 waits for adapter 'b', and all 1 slots are .* pinned: raise max_loras"
    ):
        replay(trace, max_loras=1)


def test_whoever_still_uses_an_adapter_under_other_settings_keeps_it_when_it_is_removed() -> None:
    shop = Shop(slots=1)
    with shop.house.trace.record() as trace:
        shop.start()
        shop.ask("a", length=40, most=4)
        shop.pin("a")
        shop.house.run()
        shop.remove("a")
        shop.ask("b")
        shop.house.run()
    assert str(Trace.diff(trace, replay(trace))) == SAME
    slow = replay(trace, max_num_batched_tokens=2)
    assert slow.requests.finish_reason.tolist() == ["length"] * 2
    assert slow.requests.output_tokens.tolist() == [4, 2]
