"""The adapters of one engine: which are known, whose weights are on the host, which have a slot.

Callers add and remove them in any thread; the scheduler asks for slots in the engine's turn. An adapter is
numbered anew whenever it is added, and goes by that number inside the engine: one that was removed and added
again never meets the KV blocks of its former self. Knows no torch: what weights are is the reader's affair.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from workbench.lora.adapter_file import AdapterFile, stamp_of
from workbench.lora.slots import Slots
from workbench.params import LoRARequest

Weights = Any  # of one adapter, on the host


@dataclass(frozen=True, slots=True)
class Adapter:
    """One that was added."""

    number: int  # inside the engine: 0, 1, 2 ... in the order in which they were added
    request: LoRARequest
    file: AdapterFile

    @property
    def called(self) -> str:
        return f"adapter {self.request.lora_int_id} ({self.request.lora_name!r})"


class Boarded(NamedTuple):
    """An adapter that was given a slot."""

    slot: int
    evicted: int | None  # number of the one that made room


class Placed(NamedTuple):
    """An adapter, and where it lies."""

    name: str  # as the user calls it
    slot: int | None  # None: nowhere


class Adapters:
    """Known adapters, the host's weights (LRU of `max_cpu_loras`), and the device's slots."""

    def __init__(
        self,
        find: Callable[[str], Path],
        read: Callable[[Path], AdapterFile],
        load: Callable[[AdapterFile], Weights],
        max_loras: int,
        max_cpu_loras: int,
    ) -> None:
        """`find`: from a lora_path to a folder; `read` checks it; `load` brings its weights to the host."""
        self._find, self._read, self._load = find, read, load
        self._lock = threading.RLock()
        self._known: dict[int, Adapter] = {}  # by lora_int_id
        self._by_number: dict[int, Adapter] = {}
        self._host: OrderedDict[int, Weights] = OrderedDict()  # by number, least recently used first
        self._most_on_host = max_cpu_loras
        self._next = 0
        self.slots = Slots(max_loras)

    # --- callers', in any thread ----------------------------------------------------------------------

    def add(self, request: LoRARequest) -> Adapter:
        """The adapter of a request; read, checked and loaded when it comes for the first time.

        Raises:
            TypeError: it is no LoRARequest.
            OSError: a file is missing.
            ValueError: it cannot be used, or its id means another one.
        """
        if not isinstance(request, LoRARequest):
            raise TypeError(f"lora_request is {request!r}: use LoRARequest(name, id, path)")
        known = self._known.get(request.lora_int_id)
        if known is not None:
            return _same(known, request)
        file = self._read(self._find(request.lora_path))
        weights = self._load(file)  # without the lock, for which the scheduler may be waiting
        with self._lock:
            known = self._known.get(request.lora_int_id)
            if known is not None:  # another thread was faster
                return _same(known, request)
            self._check_room()
            adapter = Adapter(self._next, request, file)
            self._keep(adapter.number, weights)
            self._next += 1
            self._known[request.lora_int_id] = self._by_number[adapter.number] = adapter
            return adapter

    def remove(self, lora_int_id: int, in_use: Callable[[int], int]) -> Placed | None:
        """Forget an adapter: which one it was, and where it lay. None where there is none.

        Args:
            in_use: how many open requests use the adapter of a number.

        Raises:
            ValueError: somebody uses it.
        """
        with self._lock:
            adapter = self._known.get(lora_int_id)
            if adapter is None:
                return None
            placed = self._placed(adapter)
            if users := in_use(adapter.number):
                raise ValueError(
                    f"{adapter.called} is used by {users} open request{'s' * (users > 1)}: let them end, or"
                    " abort them, before it is removed"
                )
            self.slots.give(adapter.number)
            self.slots.pinned.discard(adapter.number)
            self._host.pop(adapter.number, None)
            del self._known[lora_int_id], self._by_number[adapter.number]
            return placed

    def pin(self, lora_int_id: int) -> Placed:
        """Once it has a slot, an adapter keeps it: which one it is, and where it lies by now.

        Raises:
            ValueError: it is not known, or no slot would be left to the others.
        """
        with self._lock:
            adapter = self._known.get(lora_int_id)
            if adapter is None:
                raise ValueError(f"lora_int_id {lora_int_id} is not known: add_lora it first")
            pinned = {*self.slots.pinned, adapter.number}
            if len(pinned) >= self.slots.count and len(self._known) > len(pinned):
                raise ValueError(
                    f"pinning {adapter.called} would leave no slot to the other adapters: raise max_loras"
                    f" ({self.slots.count}), or remove_lora those that are not needed"
                )
            self.slots.pinned = pinned
            return self._placed(adapter)

    def ids(self) -> set[int]:
        """The lora_int_ids of all that were added."""
        with self._lock:
            return set(self._known)

    def _placed(self, adapter: Adapter) -> Placed:
        return Placed(adapter.request.lora_name, self.slots.slot_of(adapter.number))

    def _check_room(self) -> None:
        if len(self.slots.pinned) >= self.slots.count:
            raise ValueError(
                f"all {self.slots.count} adapter slots are pinned, and another adapter would never run: raise"
                " max_loras, or remove_lora a pinned one"
            )

    # --- the scheduler's, in the engine's turn --------------------------------------------------------

    def is_known(self, number: int) -> bool:
        """Whether it was not removed meanwhile."""
        return number in self._by_number

    def name_of(self, number: int) -> str:
        """As the user calls it."""
        return self._by_number[number].request.lora_name

    def board(self, number: int) -> Boarded | None:
        """Give an adapter a slot, its weights being on the host by then; None: all are held.

        Raises:
            OSError, ValueError: it had left the host, and its files are no longer what they were.
        """
        with self._lock:
            taken = self.slots.take(number)
            if taken is None:
                return None
            try:
                self._bring(number)
            except BaseException:
                self.slots.give(number)
                raise
            return Boarded(*taken)

    def unboard(self, number: int) -> None:
        """Take its slot away from an adapter that nobody holds."""
        with self._lock:
            self.slots.give(number)

    def copy(self) -> Trial:
        """What would lie in which slot, to try a plan on."""
        return Trial(self)

    def forget_device(self) -> None:
        """The runner starts anew: nothing is in any slot."""
        with self._lock:
            for number in self.slots.resident:
                self.slots.give(number)

    # --- the runner's ---------------------------------------------------------------------------------

    def weights(self, number: int) -> Weights:
        """Of an adapter that has a slot."""
        with self._lock:
            return self._host[number]

    def _bring(self, number: int) -> None:
        if number in self._host:
            self._host.move_to_end(number)
            return
        adapter = self._by_number[number]
        if stamp_of(adapter.file.folder) != adapter.file.stamp:
            raise ValueError(
                f"the weights of {adapter.called} in {adapter.file.folder} have changed since it was added:"
                " remove_lora it and add it again"
            )
        self._keep(number, self._load(adapter.file))

    def _keep(self, number: int, weights: Weights) -> None:
        """Remember weights, if those that have no slot leave room for them."""
        resident = self.slots.resident
        for other in list(self._host):
            if len(self._host) < self._most_on_host:
                break
            if other not in resident:
                del self._host[other]
        if len(self._host) < self._most_on_host:
            self._host[number] = weights


class Trial:
    """The slots as they are, to be changed without anybody noticing; nothing is loaded."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self.slots = adapters.slots.copy()

    def is_known(self, number: int) -> bool:
        return self._adapters.is_known(number)

    def name_of(self, number: int) -> str:
        return self._adapters.name_of(number)

    def board(self, number: int) -> Boarded | None:
        taken = self.slots.take(number)
        return None if taken is None else Boarded(*taken)

    def unboard(self, number: int) -> None:
        self.slots.give(number)

    def forget_device(self) -> None:
        for number in self.slots.resident:
            self.slots.give(number)

    def copy(self) -> Trial:
        return Trial(self._adapters)


def _same(known: Adapter, request: LoRARequest) -> Adapter:
    """The adapter, where the id means what it meant before."""
    before = known.request
    if (before.lora_name, before.lora_path) != (request.lora_name, request.lora_path):
        raise ValueError(
            f"lora_int_id {request.lora_int_id} is {before.lora_name!r} of {before.lora_path}, not"
            f" {request.lora_name!r} of {request.lora_path}: give the other one another id, or remove_lora"
            f"({request.lora_int_id}) first"
        )
    return known
