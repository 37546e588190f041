"""Which adapter lies in which slot of the device, who holds it, and which one makes room for another.

Knows numbers of adapters only, neither files nor weights.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple


class Taken(NamedTuple):
    """A slot that was given to an adapter."""

    slot: int
    evicted: int | None  # the adapter that lay there


class Slots:
    """`count` slots, numbered from 0. An adapter that is held is never evicted, a pinned one never again.

    Of the others, the one that was held longest ago goes first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pinned: set[int] = set()  # adapters, resident or not
        self._slots: OrderedDict[int, int] = OrderedDict()  # adapter -> slot, the least recently held first
        self._holders: dict[int, int] = {}  # adapter -> who holds it; those held by nobody are not in it
        self._free = list(range(count - 1, -1, -1))

    def slot_of(self, adapter: int) -> int | None:
        """Where it is resident; None: it is not."""
        return self._slots.get(adapter)

    @property
    def resident(self) -> tuple[int, ...]:
        """The adapters that have a slot."""
        return tuple(self._slots)

    def take(self, adapter: int) -> Taken | None:
        """A slot for an adapter that has none; None: all are held or pinned."""
        assert adapter not in self._slots, f"adapter {adapter} has a slot already"
        evicted = None
        if not self._free:
            evicted = next(
                (each for each in self._slots if each not in self._holders and each not in self.pinned), None
            )
            if evicted is None:
                return None
            self._free.append(self._slots.pop(evicted))
        slot = self._slots[adapter] = self._free.pop()
        return Taken(slot, evicted)

    def hold(self, adapter: int) -> int:
        """Somebody runs with it; its slot."""
        self._holders[adapter] = self._holders.get(adapter, 0) + 1
        self._slots.move_to_end(adapter)
        return self._slots[adapter]

    def release(self, adapter: int) -> None:
        """Somebody who held it does no more."""
        self._holders[adapter] -= 1
        if not self._holders[adapter]:
            del self._holders[adapter]

    def is_held(self, adapter: int) -> bool:
        """Whether somebody computes with it."""
        return adapter in self._holders

    def give(self, adapter: int) -> None:
        """It has a slot no longer, if it had one; nobody holds it."""
        assert adapter not in self._holders, f"adapter {adapter} is held"
        if adapter in self._slots:
            self._free.append(self._slots.pop(adapter))

    def copy(self) -> Slots:
        """The same, to be changed without this noticing."""
        other = Slots(self.count)
        other.pinned, other._slots = set(self.pinned), self._slots.copy()
        other._holders, other._free = dict(self._holders), list(self._free)
        return other

    def check(self) -> None:
        """The laws: every slot is free or one adapter's, and whoever is held has one."""
        used = [*self._slots.values(), *self._free]
        assert sorted(used) == list(range(self.count)), f"slots {sorted(used)} of {self.count}"
        assert self._holders.keys() <= self._slots.keys(), "an adapter is held and has no slot"
