"""Outputs as they come: an iterator that drives the engine itself, async iterators that one thread drives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress

from workbench.engine.request import Request
from workbench.open_requests import OpenRequests
from workbench.outputs import RequestOutput
from workbench.params import RequestOutputKind
from workbench.parent import Parent
from workbench.worker import Worker


def stream(requests: OpenRequests, parent: Parent) -> Iterator[RequestOutput]:
    """What is new of one prompt's outputs, until they end; closing the iterator aborts them."""
    arrived: deque[RequestOutput] = deque()

    def listen(_: Request) -> None:
        if (output := parent.output(RequestOutputKind.DELTA)) is not None:
            arrived.append(output)

    requests.submit([parent], listen, streams=True)
    try:
        while True:
            requests.drive([parent], lambda: bool(arrived) or parent.finished)
            while arrived:
                yield arrived.popleft()
            if parent.finished:
                return
    finally:
        requests.abort([parent])


class AsyncStreams:
    """Async iterators over one engine; its worker thread lives while any of them is open."""

    def __init__(self, requests: OpenRequests) -> None:
        self._requests = requests
        self._worker = Worker(requests.engine, self._crashed)
        self._callers: dict[Parent, Callable[[BaseException], None]] = {}  # to hear of a crash

    async def stream(self, parent: Parent) -> AsyncGenerator[RequestOutput, None]:
        """What is new of one prompt's outputs, until they end; closing or cancelling aborts them."""
        loop, worker = asyncio.get_running_loop(), self._worker
        queue: asyncio.Queue[RequestOutput | BaseException] = asyncio.Queue()

        def put(item: RequestOutput | BaseException) -> None:
            with suppress(RuntimeError):  # the loop has closed: nobody listens any more
                loop.call_soon_threadsafe(queue.put_nowait, item)

        def listen(request: Request) -> None:
            if (output := parent.output(RequestOutputKind.DELTA)) is not None:
                put(output)
            if request.finished:
                worker.ended([request])

        def add() -> None:
            try:
                self._requests.add([parent], listen, streams=True)
            except (ValueError, RuntimeError) as error:  # concerns this caller alone
                worker.ended(parent.requests)
                put(error)

        self._callers[parent] = put
        try:
            worker.post(add, opens=parent.requests)
            while True:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            del self._callers[parent]
            if not parent.finished:
                worker.post(lambda: self._requests.end([parent]))

    def _crashed(self, error: BaseException) -> None:
        for put in list(self._callers.values()):
            put(error)
