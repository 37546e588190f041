"""The scheduler's rule: never more adapters in a step than slots, and nobody starves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_laws import ALONE, World, arrivals, expected, output, setups
from workbench import LoRARequest
from workbench.engine import adapter_turns
from workbench.engine.events import AdapterEvicted, AdapterLoaded
from workbench.lora import adapters as home
from workbench.lora.adapters import Adapters

COUNT = 5


@pytest.fixture(autouse=True, scope="module")
def _no_files() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "stamp_of", lambda folder: (0, 0))
        yield


def known(slots: int, on_host: int, load: Callable[[Any], Any] = lambda file: file) -> Adapters:
    """Some adapters, numbered from 0, whose files are but names."""

    def read(folder: Path) -> Any:
        return SimpleNamespace(folder=folder, stamp=(0, 0))

    adapters = Adapters(Path, read, load, slots, on_host)
    for number in range(COUNT):
        adapters.add(LoRARequest(f"a{number}", number + 1, str(number)))
    return adapters


class Adapted(World):
    """Checks the rule at every step."""

    def __init__(self, setup: dict, adapters: Adapters) -> None:
        super().__init__(setup, adapters)
        self.most = 0
        launch = self.runner.launch

        def watched(plan: Any) -> Any:
            for load in plan.loads:
                assert str(adapters.weights(load.adapter).folder) == str(load.adapter)
            try:
                return launch(plan)
            finally:
                rows = [self.runner.rows[row] for row in plan.rows.tolist()]
                self.most = max(self.most, len({row["slot"] for row in rows} - {None}))
                assert self.most <= adapters.slots.count, "a step has more adapters than there are slots"

        self.runner.launch = watched  # type: ignore[method-assign]


@st.composite
def adapted(draw: Any) -> list[dict]:
    return [{**item, "adapter": draw(st.sampled_from([None, *range(COUNT)]))} for item in draw(arrivals)]


@settings(max_examples=120)
@given(setups(), adapted(), st.integers(1, 3), st.integers(0, 2), st.sampled_from([0, 3, 256]))
def test_every_request_ends_with_its_adapters_tokens(
    setup: dict, workload: list[dict], slots: int, more: int, patience: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_turns, "PATIENCE", patience)
        world = Adapted(setup, known(slots, slots + more))
        for request in world.run(workload):
            if request.finish_reason == "abort":
                assert output(request) == expected(request)[: len(output(request))]
            else:
                assert output(request) == expected(request)
        assert world.scheduler.cache.pool.num_held == 0
        for number in range(COUNT):
            assert world.scheduler.users_of(number) == 0
        world.scheduler.check()


@settings(max_examples=40)
@given(setups(), adapted(), st.sets(st.integers(0, 20), max_size=3))
def test_a_failed_step_changes_no_other_requests(setup: dict, workload: list[dict], failures: set) -> None:
    world = Adapted(setup, known(2, 3))
    world.runner.fail_at = failures
    for request in world.run(workload):
        if request.finish_reason in ("abort", "error"):
            assert output(request) == expected(request)[: len(output(request))]
        else:
            assert output(request) == expected(request)


def item(prompt: int, adapter: int | None, **changed: Any) -> dict:
    plain = {"count": 6, "stop": (), "priority": 0, "at": 0, "abort_at": None}
    return {**plain, "prompt": [prompt, 2, 3], "adapter": adapter, **changed}


def test_adapters_are_evicted_and_come_back_while_requests_wait() -> None:
    world, told = Adapted({**ALONE, "max_rows": 2}, known(1, 1)), []
    world.emit.add(lambda event: told.append(event))
    made = world.run([item(n, n % 3, at=10 * n) for n in range(9)])
    assert [output(request) for request in made] == [expected(request) for request in made]
    loaded = [event.adapter for event in told if isinstance(event, AdapterLoaded)]
    evicted = [event.adapter for event in told if isinstance(event, AdapterEvicted)]
    assert len(loaded) > 3, "nobody came back"
    assert evicted == loaded[:-1]
    assert world.most == 1


def test_a_copy_overlaps_with_a_step_and_comes_first_where_there_is_none() -> None:
    world, plans = Adapted(ALONE, known(2, 2)), []
    launch = world.runner.launch

    def note(plan: Any) -> Any:
        plans.append((plan.loads, [added.adapter for added in plan.added]))
        return launch(plan)

    world.runner.launch = note  # type: ignore[method-assign]
    world.run([item(1, 3), item(2, None, at=1), item(3, 4, at=1)])
    assert plans[0] == (((0, 3),), [0]), "nobody else computes: at once"
    assert plans[1] == (((1, 4),), [None]), "the copy goes with others' step"
    assert plans[2] == ((), [1])


def test_whoever_has_a_slot_or_needs_none_overtakes_whoever_waits_for_one() -> None:
    world = Adapted(ALONE, known(1, 1))
    made = world.run([item(1, 0, count=9), item(2, 1), item(3, 0), item(4, None)])
    firsts = [request.times.first_token for request in made]
    assert firsts[2] < firsts[1]
    assert firsts[3] < firsts[1]


def test_nobody_is_overtaken_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_turns, "PATIENCE", 10)
    world = Adapted({**ALONE, "max_rows": 2}, known(1, 1))
    stream = [item(n, 0, at=3 * n) for n in range(40)]  # there are always two of them
    made = world.run([*stream, item(50, 1, at=1)])
    late = [request for request in made[:-1] if request.times.first_token < made[-1].times.first_token]
    assert len(late) < 15, "it waited for all of them"


def test_a_file_that_went_bad_ends_its_own_requests_and_no_others() -> None:
    gone: set[str] = set()

    def load(file: Any) -> Any:
        if str(file.folder) in gone:
            raise FileNotFoundError(f"{file.folder} is gone")
        return file

    world = Adapted({**ALONE, "max_rows": 1}, known(1, 1, load))
    gone.add("2")
    made = world.run([item(1, 0), item(2, 2), item(3, 1), item(4, None)])
    assert made[1].finish_reason == "error"
    assert made[1].stop_reason == "2 is gone"
    assert world.scheduler.take_turned_away() == [made[1]]
    for request in (made[0], made[2], made[3]):
        assert output(request) == expected(request)


def test_a_pinned_adapter_stays() -> None:
    adapters, told = known(2, 2), []
    adapters.pin(1)  # whose number is 0
    world = Adapted({**ALONE, "max_rows": 1}, adapters)
    world.emit.add(lambda event: told.append(event))
    made = world.run([item(n, n % 3) for n in range(12)])
    assert [output(request) for request in made] == [expected(request) for request in made]
    assert "a0" not in [event.adapter for event in told if isinstance(event, AdapterEvicted)]
    with pytest.raises(
        ValueError, match=r"pinning adapter 2 \('a1'\) would leave no slot .* max_loras \(2\)"
    ):
        adapters.pin(2)


def test_an_adapter_that_was_removed_before_its_request_came_is_named() -> None:
    adapters = known(1, 1)
    world = Adapted(ALONE, adapters)
    request = world.request(1, [1, 2], 3, (), 0, None, 0)
    assert adapters.remove(1, world.scheduler.users_of)
    with pytest.raises(ValueError, match="removed meanwhile"):
        world.scheduler.add(request)
