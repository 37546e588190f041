"""What people do with an engine's LoRA adapters between two plans; observers are told, so that replays know.

Knows lora_int_ids and turns; neither files nor what an adapter is.
"""

from __future__ import annotations

from workbench.build import Built, adapters_of
from workbench.engine.clock import Clock
from workbench.engine.events import AdapterPinned, AdapterRemoved, Emitter


class Loras:
    """The adapters of one engine. ValueError, all of it, where the engine has none."""

    def __init__(self, built: Built, clock: Clock, emit: Emitter) -> None:
        self._built = built
        self._clock = clock
        self._emit = emit

    def remove(self, lora_int_id: int) -> bool:
        """Forget one; False where it is not known. ValueError while open requests use it."""
        engine = self._built.engine
        with engine.undisturbed():
            engine.drain()
            removed = adapters_of(self._built).remove(lora_int_id, engine.scheduler.users_of)
            if removed is not None and self._emit:
                self._emit(AdapterRemoved(self._clock(), removed.name, removed.slot))
            return removed is not None

    def pin(self, lora_int_id: int) -> None:
        """Have one keep its slot. ValueError where it is not known, or the others would have no slot left."""
        with self._built.engine.undisturbed():
            pinned = adapters_of(self._built).pin(lora_int_id)
            if self._emit:
                self._emit(AdapterPinned(self._clock(), pinned.name, pinned.slot))
