"""The waiting requests, in the order of a policy."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

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

    def copy(self) -> WaitingQueue:
        """The same queue, of copies of the requests."""
        other = WaitingQueue(self._policy)
        live = sorted(entry for entry in self._heap if entry[2].state is State.WAITING)
        other._heap = [(key, arrival, request.copy()) for key, arrival, request in live]  # sorted: a heap
        other._count = len(live)
        return other

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

    def reorder(self, order: Sequence[Request]) -> bool:
        """These waiting requests trade the places they have for that order; the others keep theirs.

        A place is made of what policies look at, an arrival and a priority, and is handed on with both.
        False, and nothing done, where the policy looks at something else.
        """
        moving, before = set(order), list(self)
        assert moving <= set(before), "somebody who is to be moved does not wait"
        wanted, held = iter(order), [(r.priority, r.arrival) for r in order]
        after = [next(wanted) if request in moving else request for request in before]
        _give_places(order, [(r.priority, r.arrival) for r in before if r in moving])
        try:
            heap = sorted((self._policy.key(request), request.arrival, request) for request in before)
        except BaseException:
            _give_places(order, held)
            raise
        if [request for *_, request in heap] != after:
            _give_places(order, held)
            return False
        self._heap = heap  # sorted: a heap
        return True

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


def _give_places(requests: Sequence[Request], places: Sequence[tuple[int, int]]) -> None:
    for request, (priority, arrival) in zip(requests, places, strict=True):
        request.priority, request.arrival = priority, arrival
