"""Observers cannot change a run: whoever watches, the same plans are made and the same tokens taken."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trace.house import House, build
from tests.trace.test_sums import workloads
from workbench.engine.events import Emitter, Event, Observer, StepPlanned
from workbench.engine.plan import StepPlan
from workbench.trace import Trace


def run(work: list[tuple[list[int], int]], watch: Callable[[House], None], **options: int) -> House:
    """The workload, with one request aborted on the way."""
    house = build(watched=False, **options)
    watch(house)
    for prompt, most in work:
        house.add(prompt, most)
    for _ in range(4):
        if house.engine.scheduler.has_work:
            house.engine.advance()
    house.engine.abort(house.requests[:1])
    return house.run()


def nobody(house: House) -> None:
    pass


def a_trace(house: House) -> None:
    house.emitter.add(house.trace.observer)


def a_ring(house: House) -> None:
    house.emitter.add(Trace(1).observer)


def many(house: House) -> None:
    for observer in (house.trace.observer, raises_at(7), lambda event: None, raises_at(1)):
        house.emitter.add(observer)


def who_comes_and_goes(house: House) -> None:
    def observer(event: Event) -> None:
        if isinstance(event, StepPlanned):
            house.emitter.remove(observer)
            house.emitter.add(house.trace.observer)

    house.emitter.add(observer)


def a_vandal(house: House) -> None:
    """Writes to all arrays there are, whatever that raises."""

    def observer(event: Event) -> None:
        for array in arrays([getattr(event, name) for name in event.__slots__]):
            with suppress(ValueError):
                array[...] = 0

    house.emitter.add(observer)


def one_that_leaves_and_raises(house: House) -> None:
    def observer(event: Event) -> None:
        house.emitter.remove(observer)
        raise RuntimeError("an observer's own fault")

    house.emitter.add(observer)


def raises_at(number: int, error: type[BaseException] = RuntimeError) -> Observer:
    seen = []

    def observer(event: Event) -> None:
        seen.append(event)
        if len(seen) == number:
            raise error("an observer's own fault")

    return observer


def arrays(value: object) -> list[np.ndarray]:
    """All there are in a value."""
    if isinstance(value, np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        return arrays([getattr(value, f.name) for f in dataclasses.fields(value)])
    if isinstance(value, tuple | list):
        return [array for item in value for array in arrays(item)]
    return []


def decisions(house: House) -> tuple[object, ...]:
    """Everything that was planned and everything that came of it."""
    requests = [
        (r.token_ids.tolist(), r.finish_reason, r.num_preemptions, r.num_cached_tokens, r.num_overshoot)
        for r in house.requests
    ]
    return requests, [plain(plan) for plan in house.runner.plans], house.engine.scheduler.cache.pool._keys


def plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    "watch", [a_trace, a_ring, many, who_comes_and_goes, a_vandal, one_that_leaves_and_raises]
)
@given(work=workloads(), blocks=st.integers(14, 30), depth=st.integers(0, 2), budget=st.integers(3, 40))
@settings(max_examples=25)
def test_whoever_watches_the_same_is_decided(
    watch: Callable[[House], None],
    work: list[tuple[list[int], int]],
    blocks: int,
    depth: int,
    budget: int,
) -> None:
    options = {"blocks": blocks, "depth": depth, "budget": budget}
    assert decisions(run(work, watch, **options)) == decisions(run(work, nobody, **options))


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, KeyboardInterrupt])
@given(work=workloads(), number=st.integers(1, 60), depth=st.integers(0, 2))
@settings(max_examples=25)
def test_whatever_an_observer_raises_the_same_is_decided_and_whoever_drives_hears_of_it(
    error: type[BaseException], work: list[tuple[list[int], int]], number: int, depth: int
) -> None:
    plain, house = (build(watched=False, blocks=16, depth=depth) for _ in range(2))
    heard: list[Event] = []
    house.emitter.add(raises_at(number, error))
    house.emitter.add(heard.append)
    raised = 0
    for each in (plain, house):
        for prompt, most in work:
            each.add(prompt, most)
    plain.run()
    while house.engine.scheduler.has_work:
        try:
            house.engine.advance()
        except error:
            raised += 1
        house.engine.scheduler.check()
    assert decisions(house) == decisions(plain)
    assert raised == (len(heard) >= number)


def test_what_an_observer_raises_at_an_arrival_is_raised_in_that_turn() -> None:
    house = build(watched=False)
    house.emitter.add(raises_at(1, SystemExit))
    with pytest.raises(SystemExit), house.engine.undisturbed():
        house.add([1, 2])
    house.run()
    assert house.requests[0].finished


def test_an_observer_that_is_not_there_can_be_removed() -> None:
    house = build(watched=False)
    house.emitter.add(house.trace.observer)
    house.emitter.remove(print)
    house.add([1, 2, 3])
    house.run()
    assert len(house.trace.steps) > 0


class Hesitant:
    """An observer that takes its time to be told from another, so that threads meet there."""

    def __call__(self, event: Event) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        time.sleep(1e-3)
        return self is other

    __hash__ = object.__hash__


def test_observers_that_come_while_others_go_in_another_thread_are_not_lost() -> None:
    emitter, leaving, coming = Emitter(), [Hesitant() for _ in range(8)], [Hesitant() for _ in range(40)]
    for observer in leaving:
        emitter.add(observer)

    def leave() -> None:
        for observer in reversed(leaving):
            emitter.remove(observer)

    thread = threading.Thread(target=leave)
    thread.start()
    for observer in coming:
        emitter.add(observer)
        time.sleep(5e-4)
    thread.join()
    assert list(map(id, emitter._observers)) == list(map(id, coming))


def test_no_array_of_an_event_can_be_written_to() -> None:
    house, seen = build(watched=False, blocks=14, budget=9, depth=1), []

    def observer(event: Event) -> None:
        seen.extend(array.flags.writeable for array in arrays(event) if array.size)

    house.emitter.add(observer)
    for number in range(6):
        house.add([1] * 6 + [number] * number, max_tokens=8, ignore_eos=True)
    house.run()
    assert len(seen) > 100
    assert not any(seen)


def test_an_observer_that_raises_is_set_aside_and_the_others_hear_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house, heard = build(watched=False), []

    def faulty(event: Event) -> None:
        heard.append(event)
        raise RuntimeError("an observer's own fault")

    house.emitter.add(faulty)
    house.emitter.add(house.trace.observer)
    house.add([1, 2], max_tokens=2, ignore_eos=True)
    with caplog.at_level(logging.WARNING):
        house.run()
    assert len(heard) == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "faulty" in record.getMessage()
    assert "an observer's own fault" in record.getMessage()
    assert house.trace.runs.output_tokens.tolist() == [2]
    assert house.trace.blocks.event.tolist() == ["reserved", "released"]


def test_events_keep_what_they_were_told() -> None:
    """An event's arrays are its own: later steps do not write to them."""
    house, copies = build(blocks=14, budget=9, watched=False), []

    def observer(event: Event) -> None:
        fields = [getattr(event, name) for name in event.__slots__]
        copies.append((fields, [plain(field) for field in fields]))

    house.emitter.add(observer)
    for number in range(6):
        house.add([1] * 6 + [number] * number, max_tokens=8, ignore_eos=True)
    house.run()
    assert len(copies) > 40
    for fields, said in copies:
        assert [plain(field) for field in fields] == said


def test_plans_of_this_file_tell_runs_apart() -> None:
    work = [([1] * 9, 4), ([2] * 9, 4)]
    plans: list[StepPlan] = run(work, nobody, budget=9).runner.plans
    assert plans
    assert decisions(run(work, nobody, budget=9)) != decisions(run(work, nobody, budget=8))
