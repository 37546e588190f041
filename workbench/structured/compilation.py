"""Grammars on their way: what is asked for, and the one thread that makes them. Knows no backend.

The thread is there while there is something to make: it starts with the first grammar asked for and ends with
the last. What nobody waits for any more is not made.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from weakref import ReferenceType, ref

from workbench.structured.grammar import CompiledGrammar, Spec

logger = logging.getLogger(__name__)

CLOSED = "the engine was closed before its grammar was compiled"


class Compilation:
    """One grammar, shared by all who ask for it while it is being made and afterwards."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._grammar: CompiledGrammar | None = None
        self._failure: str | None = None
        self._made = threading.Event()

    @property
    def ready(self) -> bool:
        """It is there, or there will be none."""
        return self._made.is_set()

    @property
    def failure(self) -> str | None:
        """Why there is none; None: not known yet, or there is."""
        return self._failure

    def wait(self, seconds: float | None = None) -> None:
        """Return when it is ready, or after so many seconds."""
        self._made.wait(seconds)

    def grammar(self) -> CompiledGrammar:
        """It, as soon as it is ready.

        Raises:
            ValueError: there is none; the message says why.
        """
        self.wait()
        if self._grammar is None:
            raise ValueError(self._failure)
        return self._grammar

    def make(self, compile_spec: Callable[[Spec], CompiledGrammar]) -> None:
        """Compile it, now."""
        try:
            self._grammar = compile_spec(self.spec)
        except ValueError as error:
            self._failure = str(error)
        except BaseException as error:
            logger.exception("a grammar cannot be compiled")
            self._failure = f"structured_outputs: {type(error).__name__}: {error}"
        self._made.set()

    def give_up(self, failure: str) -> None:
        """There will be none."""
        self._failure = failure
        self._made.set()


class Queue:
    """Compilations in the order in which they are asked for, and the thread that makes them."""

    def __init__(self, make: Callable[[Compilation], None]) -> None:
        self._make = make
        self._guard = threading.Lock()
        self._due: deque[ReferenceType[Compilation]] = deque()
        self._running = False
        self._closed = False

    def add(self, compilation: Compilation) -> None:
        """It will be made, if somebody still holds it then."""
        with self._guard:
            if self._closed:
                compilation.give_up(CLOSED)
                return
            self._due.append(ref(compilation))
            if not self._running:
                self._running = True
                # No daemon: one that is cut off inside a library may take the process down with it.
                threading.Thread(target=self._run, name="workbench-grammars").start()

    def close(self) -> None:
        """No more are made; the thread ends with the one in hand."""
        with self._guard:
            self._closed = True
            due, self._due = self._due, deque()
        for waiting in due:
            if (compilation := waiting()) is not None:
                compilation.give_up(CLOSED)

    def _run(self) -> None:
        while (compilation := self._next()) is not None:
            self._make(compilation)
            del compilation  # before the next one is waited for

    def _next(self) -> Compilation | None:
        with self._guard:
            while self._due:
                if (compilation := self._due.popleft()()) is not None:
                    return compilation
            self._running = False
            return None
