"""LoRA adapters of a recording: names that hold slots, with nothing behind them.

A recording names the adapter of each request, and says which came, which made room, and which were pinned or
removed. Two that go by one name are one here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workbench.engine.events import (
    AdapterEvicted,
    AdapterLoaded,
    AdapterPinned,
    AdapterRemoved,
    Event,
    RequestAdmitted,
    RequestArrived,
    StepPlanned,
)
from workbench.engine.request import Request
from workbench.lora.slots import Slots, Taken


class NamedAdapters:
    """Adapters without weights, numbered as they are named; what the scheduler asks of an engine's."""

    def __init__(self, names: Sequence[str], max_loras: int, resident: Iterable[str] = ()) -> None:
        """`resident`: those that have a slot from the beginning, the least recently used first."""
        self._names = tuple(names)
        self.slots = Slots(max_loras)
        for name in resident:
            self.slots.take(self._names.index(name))

    def number_of(self, name: str) -> int | None:
        """None: the base model."""
        return self._names.index(name) if name else None

    def pin(self, number: int) -> None:
        """Once it has a slot, it keeps it."""
        self.slots.pinned.add(number)

    def remove(self, number: int, *, used: bool) -> None:
        """It is not pinned any more and, unless somebody still uses it, gives its slot back."""
        self.slots.pinned.discard(number)
        if not used:
            self.slots.give(number)

    def check_room(self, waiting: Iterable[Request]) -> None:
        """ValueError where somebody who waits never gets a slot: pins were made for more of them."""
        if len(self.slots.pinned) < self.slots.count:
            return
        for request in waiting:
            if request.adapter is not None and request.adapter not in self.slots.pinned:
                raise ValueError(
                    f"request {request.request_id} waits for adapter {self.name_of(request.adapter)!r}, and"
                    f" all {self.slots.count} slots are for adapters that were pinned: raise max_loras"
                )

    def is_known(self, number: int) -> bool:
        """Whether it was not removed meanwhile."""
        return number < len(self._names)

    def name_of(self, number: int) -> str:
        """As the user calls it."""
        return self._names[number]

    def board(self, number: int) -> Taken | None:
        """Give an adapter a slot; None: all are held."""
        return self.slots.take(number)

    def unboard(self, number: int) -> None:
        """Take its slot away from an adapter that nobody holds."""
        self.slots.give(number)

    def forget_device(self) -> None:
        """Nothing is in any slot."""
        for number in self.slots.resident:
            self.slots.give(number)

    def copy(self) -> NamedAdapters:
        """The same, to try a plan on."""
        other = NamedAdapters(self._names, 0)
        other.slots = self.slots.copy()
        return other


def read_adapters(events: Sequence[Event], max_loras: int) -> NamedAdapters | None:
    """Those of a recording; None where it has none."""
    telling = RequestArrived | AdapterPinned | AdapterRemoved
    named = [event.adapter for event in events if isinstance(event, telling) and event.adapter]
    if not named:
        return None
    resident = _resident_before(events)
    return NamedAdapters(list(dict.fromkeys(named + resident)), max_loras, resident)


def _resident_before(events: Sequence[Event]) -> list[str]:
    """Those that had a slot when the recording began, as far as it matters: the first evicted first.

    So had one that had not come and was pinned or removed with a slot, and it outlasted who went before that.
    """
    first = next((event.plan.index for event in events if isinstance(event, StepPlanned)), 0)
    adapter_of: dict[str, str] = {}
    came: set[str] = set()
    there: list[str] = []
    used: list[str] = []
    for event in events:
        match event:
            case RequestArrived():
                adapter_of[event.request_id] = event.adapter
            case AdapterLoaded() if event.step < first:  # handed over: it is pinned, and came before
                there.append(event.adapter)
            case AdapterLoaded():
                came.add(event.adapter)
            case AdapterEvicted() if event.adapter not in came:
                there.append(event.adapter)
            case AdapterPinned() | AdapterRemoved() if event.slot is not None and event.adapter not in came:
                there.append(event.adapter)
            case RequestAdmitted():
                name = adapter_of.get(event.request_id, "")
                used += [name] if name and name not in came else []
    return list(dict.fromkeys(there + used))
