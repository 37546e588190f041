"""Whose turn it is: a fair lock for the threads that share an engine, and Ctrl-C held back during a step."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType


class FairLock:
    """A lock handed on in the order of arrival, so that a thread that drives steps lets others in between."""

    def __init__(self) -> None:
        self._guard = threading.RLock()  # a finaliser may want a turn while its own thread is in here
        self._queue: deque[threading.Lock] = deque()
        self._owner: int | None = None  # thread that holds it
        self._arriving: int | None = None  # thread that is queueing up, and holds the guard

    @property
    def mine(self) -> bool:
        """Whether this very thread holds it, or is on its way in and must not wait behind itself."""
        return threading.get_ident() in (self._owner, self._arriving)

    def __enter__(self) -> None:
        me = threading.get_ident()
        ticket = threading.Lock()
        with self._guard:
            self._arriving = me  # first: a finaliser of ours that waited in here would wait with the guard
            try:
                if self._owner == me:
                    raise RuntimeError("the engine is in the middle of a step of this very thread")
                if self._owner is None:
                    self._owner = me
                    return
                ticket.acquire()
                self._queue.append(ticket)
            finally:
                self._arriving = None
        try:
            ticket.acquire()  # released by the holder before us
        except BaseException:
            self._leave_queue(ticket)
            raise
        self._owner = me

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_on()

    def _hand_on(self) -> None:
        with self._guard:
            if self._queue:
                self._owner = -1  # held, by whoever wakes up
                self._queue.popleft().release()
            else:
                self._owner = None

    def _leave_queue(self, ticket: threading.Lock) -> None:
        with self._guard:
            waiting = ticket in self._queue
            if waiting:
                self._queue.remove(ticket)
        if not waiting:  # it was handed to us just before we gave up
            self._hand_on()


class InterruptsDeferred:
    """`with InterruptsDeferred() as i`: Ctrl-C waits for `i.check()`; a second one does not.

    Only Python's main thread receives signals; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._pending: tuple[int, FrameType | None] | None = None
        self._previous: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> InterruptsDeferred:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if error is None:
            self.check()

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            self._restore()
            self._deliver(number, frame)
        self._pending = (number, frame)

    def check(self) -> None:
        """Deliver what was held back, normally by raising KeyboardInterrupt."""
        if self._pending is not None:
            (number, frame), self._pending = self._pending, None
            self._deliver(number, frame)

    def _deliver(self, number: int, frame: FrameType | None) -> None:
        if callable(self._previous):
            self._previous(number, frame)
