"""The waiting requests, in the order of a policy."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from workbench.engine.policies import Policy
from workbench.engine.request import Request, State


class WaitingQueue:
    """A heap; a request that ended while waiting is passed over when it comes up."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[object, int, Request]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        """The waiting requests, first to be admitted first."""
        return (request for *_, request in sorted(self._heap) if request.state is State.WAITING)

    def push(self, request: Request) -> None:
        self.push_with(request, self._policy.key(request))

    def push_with(self, request: Request, key: object) -> None:
        """As `push`, where the policy has been asked already."""
        # The arrival breaks ties, so that two requests are never compared themselves.
        entry = (key, request.arrival, request)
        if self._heap:
            _ = entry < self._heap[0]  # a key that cannot be compared raises here, before it is in
        heapq.heappush(self._heap, entry)
        request.state = State.WAITING
        self._count += 1

    def peek(self) -> Request | None:
        while self._heap and self._heap[0][2].state is not State.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Request:
        request = self.peek()
        assert request is not None, "the queue is empty"
        heapq.heappop(self._heap)
        self._count -= 1
        return request

    def forget(self, request: Request) -> None:
        """A waiting request has ended; its entry goes when it comes up."""
        assert request.state is not State.WAITING, "end the request before it is forgotten"
        self._count -= 1
