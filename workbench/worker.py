"""The one thread that drives the engine for async callers, while there are any. Knows nothing of asyncio."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from workbench.engine.loop import Engine
from workbench.engine.request import Request


class Worker:
    """Runs what is handed to it between steps, and steps as long as requests are open."""

    def __init__(self, engine: Engine[Any], on_error: Callable[[BaseException], None]) -> None:
        self._engine = engine
        self._on_error = on_error
        self._guard = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._open: set[Request] = set()
        self._running = False

    def post(self, action: Callable[[], None], opens: Iterable[Request] = ()) -> None:
        """Run `action` between two steps, and drive the requests it `opens` to their end."""
        with self._guard:
            self._inbox.append(action)
            self._open.update(opens)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="workbench-engine", daemon=True).start()

    def ended(self, requests: Iterable[Request]) -> None:
        """These have not to be driven any more."""
        with self._guard:
            self._open.difference_update(requests)

    def _run(self) -> None:
        try:
            while self._continue():
                with self._engine.turn:
                    while self._inbox:
                        self._inbox.popleft()()
                    if self._engine.scheduler.has_work:
                        self._engine.advance()
                    self._engine.drain_if_idle()
                    need = None if self._inbox else self._engine.scheduler.stalled_by
                self._engine.wait(need)
        except BaseException as error:  # noqa: BLE001 - the callers wait in other threads and have to hear of it
            with self._guard:
                self._running = False
                self._open.clear()
            self._on_error(error)

    def _continue(self) -> bool:
        with self._guard:
            self._running = bool(self._inbox or self._open)
            return self._running
