"""Slots: nobody who is held or pinned is evicted, the least recently held goes first, the books balance."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workbench.lora.slots import Slots

actions = st.lists(
    st.tuples(st.sampled_from(["take", "hold", "release", "pin", "give"]), st.integers(0, 5)), max_size=60
)


@given(st.integers(1, 4), actions)
def test_an_adapter_that_is_held_or_pinned_keeps_its_slot(count: int, steps: list[tuple[str, int]]) -> None:
    slots, held = Slots(count), [0] * 6
    for action, adapter in steps:
        before = {each: slots.slot_of(each) for each in slots.resident}
        if action == "take" and adapter not in before:
            taken = slots.take(adapter)
            if taken is None:
                assert len(before) == count
                assert all(held[each] or each in slots.pinned for each in before)
            elif taken.evicted is not None:
                assert len(before) == count
                assert not held[taken.evicted]
                assert taken.evicted not in slots.pinned
                assert before[taken.evicted] == taken.slot
        elif action == "hold" and adapter in before:
            assert slots.hold(adapter) == before[adapter]
            held[adapter] += 1
        elif action == "release" and held[adapter]:
            slots.release(adapter)
            held[adapter] -= 1
        elif action == "pin" and adapter in before:
            slots.pinned.add(adapter)
        elif action == "give" and not held[adapter]:
            slots.give(adapter)
            assert slots.slot_of(adapter) is None
        slots.check()


def test_the_one_held_longest_ago_goes_first() -> None:
    slots = Slots(3)
    for adapter in (1, 2, 3):
        slots.take(adapter)
    for adapter in (2, 1, 3):
        slots.hold(adapter)
        slots.release(adapter)
    slots.hold(1)
    found = []
    for adapter in (4, 5):
        taken = slots.take(adapter)
        assert taken is not None
        found.append(taken.evicted)
        slots.hold(adapter)
    assert found == [2, 3]
    assert slots.take(6) is None
