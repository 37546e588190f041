"""The requests users have open in one engine, from being queued until their end is told.

The one way in and out for callers, whatever they wait in: a call, an iterator, async code, or a loop of
their own. Knows neither prompts nor text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from workbench.engine.flight import Commit
from workbench.engine.loop import Engine
from workbench.engine.request import Request
from workbench.outputs import RequestOutput
from workbench.parent import Parent

Listen = Callable[[Request], None]

CLOSED = "this LLM is closed: make a new one"


class OpenRequests:
    """Books by request id; all writes happen in the engine's turn."""

    def __init__(self, engine: Engine[Any]) -> None:
        self.by_hand: dict[str, Parent] = {}  # nobody listens to these: `step` tells them
        self._engine: Engine[Any] | None = engine
        self._open: dict[str, Parent] = {}  # until they end
        self._children: set[str] = set()  # ids of the open requests' children, where n > 1

    def __bool__(self) -> bool:
        """Whether anything is open, or has ended and was not told."""
        return bool(self._open or self.by_hand)

    @property
    def awaited(self) -> bool:
        """Whether a call waits for requests that are open: others than those that `step` tells."""
        return any(name not in self.by_hand for name in tuple(self._open))

    @property
    def engine(self) -> Engine[Any]:
        if self._engine is None:
            raise RuntimeError(CLOSED)
        return self._engine

    def in_use(self, name: str) -> bool:
        return name in self._open or name in self.by_hand or name in self._children

    def named(self, names: Iterable[str]) -> list[Parent]:
        """Those of the ids that are open; an Enum's members are other keys than the str they are."""
        plain = [str.__str__(name) if isinstance(name, str) else name for name in names]
        return [self._open[name] for name in plain if name in self._open]

    def submit(self, parents: Sequence[Parent], listen: Listen | None, *, streams: bool = False) -> None:
        """Queue requests; all of them or, when something interrupts, none."""
        try:
            with self.engine.undisturbed():
                self.add(parents, listen, streams=streams)
        except BaseException:
            self.abort(parents)
            raise

    def add(self, parents: Sequence[Parent], listen: Listen | None, *, streams: bool) -> None:
        """Queue requests, in the engine's turn.

        Args:
            listen: hears of each request's end, and with `streams` of each token; None: `step` tells them.

        Raises:
            ValueError: an id is in use.
            RuntimeError: the device was lost.
        """
        self.engine.check()
        for parent in parents:
            for name in parent.names:
                if self.in_use(name):
                    raise ValueError(f"request id {name!r} is in use: choose another, or leave it out")
        for parent in parents:
            self._open[parent.request_id] = parent
            self._children.update(parent.names[1:])
            if listen is None:
                self.by_hand[parent.request_id] = parent
            for request in parent.requests:
                request.streams = streams or listen is None  # `step` tells of every token too
                request.listener = self._listener(parent, listen)
                self.engine.scheduler.add(request)

    def _listener(self, parent: Parent, listen: Listen | None) -> Listen:
        def told(request: Request) -> None:
            if parent.finished:
                self._open.pop(parent.request_id, None)
                self._children.difference_update(parent.names[1:])
            if listen is not None:
                listen(request)

        return told

    def drive(self, parents: Sequence[Parent], done: Callable[[], bool]) -> None:
        """Step until done; whatever interrupts this aborts the caller's own requests and no others."""
        try:
            self.engine.run_until(done)
        except BaseException:
            self.abort(parents)
            raise

    def abort(self, parents: Sequence[Parent]) -> None:
        """End requests now, once what is in flight has been committed."""
        engine = self._engine
        if engine is None or all(parent.finished for parent in parents):
            return

        def drained() -> None:
            engine.drain()
            self.end(parents)

        engine.in_turn(drained)

    def outputs_by_hand(self, commit: Commit | None) -> list[RequestOutput]:
        """What a step has to tell of the requests that are stepped by hand; each end is told once."""
        touched = set() if commit is None else {id(r) for r in (*commit.requests, *commit.finished)}
        outputs = []
        for name, parent in list(self.by_hand.items()):
            if parent.finished:
                del self.by_hand[name]
            elif not any(id(request) in touched for request in parent.requests):
                continue
            if (output := parent.output()) is not None:
                outputs.append(output)
        return outputs

    def end(self, parents: Iterable[Parent]) -> None:
        """Abort those of the requests that are open here, in the engine's turn."""
        parents = [parent for parent in parents if self._open.get(parent.request_id) is parent]
        if parents and self._engine is not None:
            self._engine.abort([request for parent in parents for request in parent.requests])

    def close(self) -> None:
        """End everything and let go of the engine."""
        with self.engine.undisturbed():
            self.engine.drain()
            self.end(list(self._open.values()))
        self.by_hand.clear()
        self._engine = None
