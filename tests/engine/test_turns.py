"""Whose turn it is: threads come in one by one, and finalisers never wait behind their own thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from workbench.engine.loop import Engine


class Collecting(deque):
    """A queue in which the garbage collector runs when it first grows, and finds a stream to end."""

    def __init__(self, engine: Engine[Any], ended: list[str]) -> None:
        super().__init__()
        self._garbage = [lambda: engine.in_turn(lambda: ended.append("stream"))]

    def append(self, ticket: threading.Lock) -> None:
        super().append(ticket)
        while self._garbage:
            self._garbage.pop()()


def test_a_finaliser_that_runs_while_its_thread_queues_up_is_put_off() -> None:
    """It would wait for its turn holding what the owner needs to hand the turn on."""
    ended: list[str] = []
    engine: Engine[Any] = Engine(None, None, 0)  # type: ignore[arg-type] - no step is driven
    engine.turn._queue = Collecting(engine, ended)
    holds, arrives = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.turn:
            holds.set()
            arrives.wait(10)
            while not engine.turn._queue:
                pass

    def queue_up() -> None:
        holds.wait(10)
        arrives.set()
        with engine.turn:
            pass

    threads = [threading.Thread(target=each, daemon=True) for each in (hold, queue_up)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert ended == []
    engine._catch_up()
    assert ended == ["stream"]
