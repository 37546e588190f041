"""Compiled grammars of one engine: the backends it may use, in order, and a cache. Knows no requests.

A grammar is compiled where it is asked for, in that thread: the engine asks before it queues a request, so
that none in its queue waits for one, and finds it here when the request enters the batch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

import numpy as np

from workbench.params import StructuredOutputsParams
from workbench.structured.backends import AUTO, absent, backends_for, open_backend
from workbench.structured.grammar import Backend, CompiledGrammar, Spec, Vocabulary
from workbench.structured.specs import spec_of

CACHED = 128  # grammars kept that nobody holds; one takes from kilobytes to a few megabytes


class Grammars:
    """What `structured_outputs` are compiled with. Threads may share one."""

    def __init__(self, backend: str, read: Callable[[], Vocabulary], cached: int = CACHED) -> None:
        """`backend`: a name, or "auto". `read`: makes the vocabulary, when the first grammar needs it."""
        self._names = backends_for(backend)
        self._auto = backend == AUTO
        self._read = read
        self._cached = cached
        self._vocabulary: Vocabulary | None = None
        self._backends: dict[str, Backend] = {}
        self._recent: OrderedDict[Spec, CompiledGrammar] = OrderedDict()  # the last used comes last
        self._held: WeakValueDictionary[Spec, CompiledGrammar] = WeakValueDictionary()
        self._lock = threading.Lock()  # of the tables alone: nobody waits for another's grammar

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = self._read()
        return self._vocabulary

    def compile(self, params: StructuredOutputsParams) -> CompiledGrammar:
        """The grammar, compiled by the first backend that enforces it.

        Raises:
            ValueError, TypeError: no backend can; the message says what each lacks.
        """
        spec = spec_of(params)
        with self._lock:
            found = self._held.get(spec)
        grammar = self._compile(spec) if found is None else found
        with self._lock:
            self._held[spec] = self._recent[spec] = grammar
            self._recent.move_to_end(spec)
            if len(self._recent) > self._cached:
                self._recent.popitem(last=False)
        return grammar

    def _compile(self, spec: Spec) -> CompiledGrammar:
        reasons = []
        for name in self._names:
            try:
                grammar = self._backend(name).compile(spec)
                self._check_begins(grammar, name)
                return grammar
            except ValueError as error:
                reasons.append(str(error))
            except RecursionError:
                reasons.append(f"{name}: the schema is nested too deeply")
        more = absent(self._names) if self._auto else []
        hint = f" ({' and '.join(more)} may: pip install workbench[grammars])" if more else ""
        raise ValueError(f"structured_outputs: {'; '.join(dict.fromkeys(reasons))}{hint}")

    def _check_begins(self, grammar: CompiledGrammar, name: str) -> None:
        """Some output must be able to begin: a $ref that leads back to itself, say, has none."""
        row = np.zeros(self.vocabulary.words, np.int32)
        try:
            grammar.start().fill(row)
        except RuntimeError as error:
            raise ValueError(f"{name}: no output matches the constraint ({error})") from error
        if not row.any():
            raise ValueError(f"{name}: no output matches the constraint")

    def _backend(self, name: str) -> Backend:
        if name not in self._backends:
            self._backends[name] = open_backend(name, self.vocabulary)
        return self._backends[name]
