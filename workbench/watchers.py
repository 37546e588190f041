"""Who watches an engine: its trace, and callbacks that come and go in its turns. Knows no text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

from workbench.build import Built
from workbench.engine.clock import Clock
from workbench.engine.events import Emitter, EngineStarted, Observer
from workbench.open_requests import CLOSED
from workbench.params import SamplingParams, check_against

if TYPE_CHECKING:
    from workbench.trace import Trace


class Observation:
    """A callback that hears events, until `end()` or the end of a `with` block."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end: Callable[[], None] | None = end

    def end(self) -> None:
        """It hears no more."""
        end, self._end = self._end, None
        if end is not None:
            end()

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


class Watchers:
    """The observers of one engine."""

    def __init__(self, emit: Emitter, clock: Clock, built: Callable[[], Built | None]) -> None:
        """`built`: the engine's parts; None once it is closed."""
        self._emit = emit
        self._built = built
        self.trace = self._start_trace()
        emit(EngineStarted(clock(), self._parts.config.to_dict() | {"tokenizer": self._tokenizer_name()}))

    def _tokenizer_name(self) -> str | None:
        """Where a recording's reader finds it."""
        parts = self._parts
        if parts.tokenizer is None:
            return None
        source = str(parts.tokenizer.name_or_path)
        return parts.config.model if source == str(parts.folder) else source

    def _start_trace(self) -> Trace:
        from workbench.trace import Trace

        tokenizer = self._parts.tokenizer
        decode = None if tokenizer is None else lambda token_ids: str(tokenizer.decode(token_ids))
        trace = Trace(decode=decode, want_logprobs=self._want_logprobs, turn=self._turn)
        self._emit.add(trace.observer)
        return trace

    def observe(self, callback: Observer) -> Observation:
        """`callback` is called with every event from now on."""
        if not callable(callback):
            raise TypeError(f"callback is {callback!r}: use a function that takes an event")
        _ = self._parts
        with self._turn():
            self._emit.add(callback)
        return Observation(lambda: self._remove(callback))

    def _remove(self, callback: Observer) -> None:
        with self._turn():
            self._emit.remove(callback)

    @property
    def _parts(self) -> Built:
        built = self._built()
        if built is None:
            raise RuntimeError(CLOSED)
        return built

    def _turn(self) -> AbstractContextManager[object]:
        """A turn of the engine for this thread, where there is one to wait for."""
        built = self._built()
        return nullcontext() if built is None or built.engine.turn.mine else built.engine.undisturbed()

    def _want_logprobs(self, count: int) -> AbstractContextManager[None]:
        """Every token's `count` top logprobs, for the trace; as many as a request could ask for."""
        params = SamplingParams(logprobs=count)
        parts = self._parts
        check_against(params, vocab_size=parts.spec.vocab_size, max_logprobs=parts.config.max_logprobs)
        return self._emit.wanting_logprobs(params.logprobs or 0)
