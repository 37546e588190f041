"""Grammars on their way: asked for, checked, and made in one thread. Knows no backend.

A check has a thread of its own: it must not stand behind a grammar that takes seconds, and a check that takes
long itself is not waited for. The thread that makes grammars is there while there is something to make. What
nobody waits for any more is not made.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar
from weakref import ReferenceType, ref

from workbench.structured.grammar import CompiledGrammar, Spec

logger = logging.getLogger(__name__)

T = TypeVar("T")

CLOSED = "the engine was closed before its grammar was compiled"


class Compilation:
    """One grammar, shared by all who ask for it while it is being made and afterwards."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._grammar: CompiledGrammar | None = None
        self._failure: str | None = None
        self._checked = threading.Event()
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

    def wait_for_check(self, seconds: float) -> None:
        """Return when what `check` refuses is known, or after so many seconds.

        Raises:
            ValueError: it was refused.
        """
        self._checked.wait(seconds)
        if self._failure is not None:
            raise ValueError(self._failure)

    def check(self, check_spec: Callable[[Spec], None], go_on: Callable[[Compilation], None]) -> None:
        """Look whether it can be made at all, now; if so it goes on before anybody hears of it."""
        self._attempt(check_spec)
        if self._failure is None:
            go_on(self)
        else:
            self._made.set()
        self._checked.set()

    def make(self, compile_spec: Callable[[Spec], CompiledGrammar]) -> None:
        """Compile it, now."""
        self._grammar = self._attempt(compile_spec)
        self._made.set()

    def _attempt(self, work: Callable[[Spec], T]) -> T | None:
        try:
            return work(self.spec)
        except ValueError as error:
            self._failure = str(error)
        except BaseException as error:
            logger.exception("a grammar cannot be compiled")
            self._failure = f"structured_outputs: {type(error).__name__}: {error}"
        return None

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
