"""The one thread that drives the engine for async callers, while there are any. Knows nothing of asyncio."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from workbench.engine.loop import Engine


class Worker:
    """Runs what is handed to it between steps, and steps as long as `open` requests are left."""

    def __init__(self, engine: Engine[Any], on_error: Callable[[BaseException], None]) -> None:
        self._engine = engine
        self._on_error = on_error
        self._guard = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._open = 0
        self._running = False

    def post(self, action: Callable[[], None], opens: int = 0) -> None:
        """Run `action` between two steps; `opens` requests more have to be driven to their end."""
        with self._guard:
            self._inbox.append(action)
            self._open += opens
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="workbench-engine", daemon=True).start()

    def ended(self) -> None:
        """One of the open requests has ended."""
        with self._guard:
            self._open -= 1

    def _run(self) -> None:
        try:
            while self._continue():
                with self._engine.turn:
                    while self._inbox:
                        self._inbox.popleft()()
                    if self._engine.scheduler.has_work:
                        self._engine.advance()
        except BaseException as error:  # noqa: BLE001 - the callers wait in other threads and have to hear of it
            with self._guard:
                self._running, self._open = False, 0
            self._on_error(error)

    def _continue(self) -> bool:
        with self._guard:
            self._running = bool(self._inbox) or self._open > 0
            return self._running
