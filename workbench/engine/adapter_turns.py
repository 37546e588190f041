"""When a waiting request's adapter lets it in: it needs one of the device's slots, and its weights there.

An adapter that gets a slot is copied behind the step that is being planned, and its requests are admitted
with the next plan, so that the copy overlaps with computation; where nobody else computes, at once. Knows
adapters by number; nothing of files or tensors.
"""

from __future__ import annotations

from typing import Protocol

from workbench.engine.clock import Clock
from workbench.engine.events import AdapterEvicted, AdapterLoaded, Emitter
from workbench.engine.plan import Load
from workbench.engine.request import Request

# Plans in which a request may be overtaken by others, whose adapters keep the slots from its own; after that
# nobody with another adapter is admitted ahead of it, until a slot is free.
PATIENCE = 256


class Slots(Protocol):
    """Who holds which of the device's slots."""

    def slot_of(self, adapter: int) -> int | None: ...
    def hold(self, adapter: int) -> int: ...
    def is_held(self, adapter: int) -> bool:
        """Whether somebody computes with it."""
        ...

    def release(self, adapter: int) -> None: ...
    def check(self) -> None: ...


class Boarded(Protocol):
    """An adapter that was given a slot."""

    @property
    def slot(self) -> int: ...
    @property
    def evicted(self) -> int | None: ...


class Adapters(Protocol):
    """What the engine asks of its adapters."""

    @property
    def slots(self) -> Slots: ...
    def is_known(self, number: int) -> bool: ...
    def name_of(self, number: int) -> str: ...
    def board(self, number: int) -> Boarded | None: ...
    def unboard(self, number: int) -> None: ...
    def forget_device(self) -> None: ...
    def copy(self) -> Adapters: ...


class AdapterTurns:
    """Lets requests in as their adapters get slots; remembers the loads that no plan has told of yet."""

    def __init__(self, adapters: Adapters | None, clock: Clock, emit: Emitter) -> None:
        """`adapters`: None in an engine without any."""
        self._adapters = adapters
        self._clock = clock
        self._emit = emit
        self._untold: dict[int, Load] = {}  # by adapter
        self._reserved: set[int] = set()  # adapters whose slots are kept until their requests had their turn
        self._lapsing: set[int] = set()  # of those, whose requests have it in the plan being made
        self._idle = True  # nobody is in the plan being made
        self._impatient: int | None = (
            None  # in the plan being made, the adapter whose request waited too long
        )

    def copy(self, emit: Emitter) -> AdapterTurns:
        """The same turns, to try a plan on."""
        adapters = None if self._adapters is None else self._adapters.copy()
        other = AdapterTurns(adapters, self._clock, emit)
        other._untold, other._reserved = dict(self._untold), set(self._reserved)
        return other

    def begin(self, *, idle: bool) -> None:
        """A plan begins to admit; `idle`: nobody is in it yet."""
        self._impatient, self._idle = None, idle
        self._lapsing = self._reserved - self._untold.keys()

    def end(self) -> None:
        """It admits no more."""
        for adapter in self._lapsing:
            self.unreserve(adapter)
        self._lapsing = set()

    def unreserve(self, adapter: int) -> None:
        """The slot is kept for nobody."""
        if adapter in self._reserved and self._adapters is not None:
            self._reserved.remove(adapter)
            self._adapters.slots.release(adapter)
            if adapter in self._untold and not self._adapters.slots.is_held(adapter):
                del self._untold[adapter]
                self._adapters.unboard(adapter)

    def admits(self, request: Request, index: int) -> bool:
        """Whether the request may enter the plan `index`.

        Raises:
            OSError, ValueError: its adapter had left the host, and its files are no longer what they were.
        """
        adapter = request.adapter
        if adapter is None:
            return True
        if self._impatient not in (None, adapter):
            return False
        assert self._adapters is not None, f"{request} has an adapter, the engine none"
        if self._adapters.slots.slot_of(adapter) is None and not self._board(adapter, index):
            if request.passed_at is None:
                request.passed_at = index
            if index - request.passed_at > PATIENCE:
                self._impatient = adapter
            return False
        return self._idle or adapter not in self._untold

    def _board(self, adapter: int, index: int) -> bool:
        assert self._adapters is not None, "there are no adapters"
        boarded = self._adapters.board(adapter)
        if boarded is None and self._idle:  # or nobody would run, for the sake of who comes later
            for other in tuple(self._reserved):
                self.unreserve(other)
            boarded = self._adapters.board(adapter)
        if boarded is None:
            return False
        self._adapters.slots.hold(adapter)
        self._reserved.add(adapter)
        self._untold[adapter] = Load(boarded.slot, adapter)
        if self._emit:
            now, name = self._clock(), self._adapters.name_of
            if boarded.evicted is not None:
                self._emit(AdapterEvicted(now, index, name(boarded.evicted), boarded.slot))
            self._emit(AdapterLoaded(now, index, name(adapter), boarded.slot))
        return True

    def hold(self, request: Request) -> None:
        """The request is admitted."""
        self._idle = False
        if request.adapter is not None and self._adapters is not None:
            request.passed_at = None
            if request.adapter in self._untold:  # it came with this very plan, which nobody else was in
                self._lapsing.add(request.adapter)
            request.adapter_slot = self._adapters.slots.hold(request.adapter)

    def release(self, request: Request) -> None:
        """It runs no more."""
        if request.adapter is not None and self._adapters is not None:
            request.adapter_slot = None
            self._adapters.slots.release(request.adapter)

    def take_loads(self) -> tuple[Load, ...]:
        """What the plan that is being written down tells the runner to copy."""
        if not self._untold:
            return ()
        loads = tuple(self._untold.values())
        self._untold.clear()
        return loads

    def restart(self) -> None:
        """The runner has forgotten what it held; nobody runs."""
        for adapter in tuple(self._reserved):
            self.unreserve(adapter)
        self._untold.clear()
        if self._adapters is not None:
            self._adapters.forget_device()

    def name_of(self, request: Request) -> str:
        """Of its adapter, as observers are told; "" for the base model."""
        if request.adapter is None or self._adapters is None:
            return ""
        return self._adapters.name_of(request.adapter)

    def check_known(self, request: Request) -> None:
        """ValueError where its adapter was removed before the request was queued."""
        if request.adapter is None or self._adapters is None:
            return
        if not self._adapters.is_known(request.adapter):
            raise ValueError("its adapter was removed meanwhile: add it again with add_lora")

    def check(self) -> None:
        """Raises AssertionError where a law is broken."""
        if self._adapters is not None:
            self._adapters.slots.check()
