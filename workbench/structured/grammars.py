"""Compiled grammars of one engine: the backends it may use, in order, and a cache. Knows no requests.

What is asked for is checked at once, over single bytes, which mostly takes milliseconds; it is compiled for
the vocabulary in a thread, and whoever asked waits for it in the queue::

    ask -> (check) -> refused | Compilation -> (thread) -> ready: a grammar | a failure

The vocabulary is read there too, with the first grammar: an engine that needs none reads none. Where a start
takes seconds anyway, `prepare` does it beside them, and no request waits for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakValueDictionary

from workbench.params import StructuredOutputsParams
from workbench.structured.backends import AUTO, absent, backends_for, is_installed, open_backend
from workbench.structured.compilation import Compilation, Queue
from workbench.structured.grammar import BYTES, Backend, CompiledGrammar, Spec, Vocabulary, check_begins
from workbench.structured.specs import spec_of

QUICK = 0.5  # seconds that whoever asks waits for the check; what takes longer is told later
CACHED = 128  # grammars kept that nobody holds; one takes from kilobytes to a few megabytes

T = TypeVar("T")


class Grammars:
    """What `structured_outputs` are compiled with. Threads may share one."""

    def __init__(
        self,
        backend: str,
        read: Callable[[], Vocabulary],
        cached: int = CACHED,
        refusal: str | None = None,
    ) -> None:
        """`backend`: a name, or "auto".

        Args:
            read: makes the vocabulary, when the first grammar needs it.
            refusal: why there can be no grammars at all.
        """
        self._names = backends_for(backend)
        self._auto = backend == AUTO
        self._read = read
        self._cached = cached
        self._refusal = refusal
        self._vocabulary: Vocabulary | None = None
        self._backends: dict[str, Backend] = {}  # over the vocabulary: the thread's
        self._sketches: dict[str, Backend] = {}  # over single bytes
        self._recent: OrderedDict[Spec, Compilation] = OrderedDict()  # made, the last used comes last
        self._held: WeakValueDictionary[Spec, Compilation] = WeakValueDictionary()  # and those on their way
        self._lock = threading.Lock()  # of the tables alone: nobody waits for another's grammar
        self._queue = Queue(self._make)

    def ask(self, params: StructuredOutputsParams) -> Compilation:
        """The grammar, made or on its way: by the first backend that enforces it.

        Raises:
            ValueError, TypeError: no backend can; the message says what each lacks. What only compiling
                tells, the compilation says later.
        """
        if self._refusal is not None:
            raise ValueError(self._refusal)
        spec = spec_of(params)
        found = self._find(spec) or self._begin(spec)
        found.wait_for_check(QUICK)
        return found

    def compile(self, params: StructuredOutputsParams) -> CompiledGrammar:
        """The grammar, waited for. Raises as `ask`, for all reasons."""
        return self.ask(params).grammar()

    def prepare(self) -> None:
        """Import the libraries and read the vocabulary, in a thread: no request waits for it then."""
        if self._refusal is None and is_installed(self._names[0]):
            threading.Thread(target=self._prepare, name="workbench-grammars-prepare").start()

    def _prepare(self) -> None:
        with suppress(ValueError):  # closed meanwhile; whatever else it is, who asks for a grammar is told
            self.compile(StructuredOutputsParams(choice=["anything"]))

    def close(self) -> None:
        """Compile no more, and keep none."""
        self._queue.close()
        with self._lock:
            self._recent.clear()

    def _find(self, spec: Spec) -> Compilation | None:
        with self._lock:
            found = self._held.get(spec)
            if found is not None and found.ready:
                self._keep(found)
        return found

    def _begin(self, spec: Spec) -> Compilation:
        for name in self._names:
            self._sketch(name)  # libraries are imported, which takes longer than most checks
        with self._lock:
            found = self._held.get(spec)  # another thread may have asked meanwhile
            if found is not None:
                return found
            self._held[spec] = begun = Compilation(spec)
        threading.Thread(target=self._check, args=(begun,), name="workbench-grammar-check").start()
        return begun

    def _check(self, compilation: Compilation) -> None:
        def check_spec(spec: Spec) -> None:
            self._first_able(lambda name: self._sketch(name).check(spec))

        compilation.check(check_spec, self._queue.add)

    def _keep(self, compilation: Compilation) -> None:
        self._recent[compilation.spec] = compilation
        self._recent.move_to_end(compilation.spec)
        if len(self._recent) > self._cached:
            self._recent.popitem(last=False)

    def _make(self, compilation: Compilation) -> None:
        compilation.make(self._compile)
        with self._lock:
            self._keep(compilation)

    def _compile(self, spec: Spec) -> CompiledGrammar:
        if self._vocabulary is None:
            self._vocabulary = self._read()
        vocabulary = self._vocabulary

        def compiled(name: str) -> CompiledGrammar:
            grammar = self._backend(name, vocabulary).compile(spec)
            check_begins(grammar, vocabulary, name)
            return grammar

        return self._first_able(compiled)

    def _first_able(self, attempt: Callable[[str], T]) -> T:
        """What comes of the first backend that takes the constraint."""
        reasons = []
        for name in self._names:
            try:
                return attempt(name)
            except ValueError as error:
                reasons.append(str(error))
            except RecursionError:
                reasons.append(f"{name}: the schema is nested too deeply")
        more = absent(self._names) if self._auto else []
        hint = f" ({' and '.join(more)} may: pip install workbench[grammars])" if more else ""
        raise ValueError(f"structured_outputs: {'; '.join(dict.fromkeys(reasons))}{hint}")

    def _backend(self, name: str, vocabulary: Vocabulary) -> Backend:
        if name not in self._backends:
            self._backends[name] = open_backend(name, vocabulary)
        return self._backends[name]

    def _sketch(self, name: str) -> Backend:
        if name not in self._sketches:
            self._sketches[name] = open_backend(name, BYTES)
        return self._sketches[name]
