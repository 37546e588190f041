"""A thread that looks after its owner when something is due, and ends with it; of files it knows nothing."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
_LONGEST = 1.0  # seconds to wait for the thread's end, which takes that long only where a disk hangs

# What the thread waits on: True, something will be due; False, nothing will any more. A SimpleQueue, because
# it may be told in a finaliser, when this very thread may hold any other lock.
_Bell = SimpleQueue[bool]


class Reminder(Generic[Owner]):
    """Calls `look(owner)` after a `ring`, and again after as many seconds as it says, until it says None.

    The owner is not kept alive; when nobody else has it, and when the interpreter ends, the thread does too.
    """

    def __init__(self, owner: Owner, look: Callable[[Owner], float | None]) -> None:
        self._bell: _Bell = SimpleQueue()
        self._thread = threading.Thread(
            target=_keep_looking,
            args=(weakref.ref(owner), look, self._bell),
            name="workbench-recording",
            daemon=True,
        )
        self._thread.start()
        # Also at exit: a thread that the interpreter stops amid a look would keep the owner's lock for good.
        weakref.finalize(owner, _end, self._bell, self._thread)

    def ring(self) -> None:
        """Something will be due; `look` says when."""
        self._bell.put(True)

    def end(self) -> None:
        """It looks no more; not to be called with a lock that `look` takes."""
        _end(self._bell, self._thread)


def _keep_looking(owner: weakref.ref[Owner], look: Callable[[Owner], float | None], bell: _Bell) -> None:
    left: float | None = None  # seconds until the next look; None: until it rings
    while _rings(bell, left):
        there = owner()
        if there is None:
            return
        left = look(there)
        del there  # or it lives until the next look


def _rings(bell: _Bell, seconds: float | None) -> bool:
    """Whether it goes on, after a ring or so many seconds."""
    try:
        return bell.get(timeout=seconds)
    except Empty:
        return True


def _end(bell: _Bell, thread: threading.Thread) -> None:
    bell.put(False)
    if thread is not threading.current_thread():  # where the last look was all that kept the owner alive
        thread.join(_LONGEST)
