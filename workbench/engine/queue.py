"""The waiting requests, in the order of a policy; those that wait for something else too stand aside."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from workbench.engine.policies import Policy
from workbench.engine.request import Need, Request, State

Entry = tuple[object, int, Request]  # key, arrival: it breaks ties, so that requests are never compared

MOST_PASSED = 512  # waiting requests a plan looks past


class WaitingQueue:
    """A heap; a request that ended while waiting is passed over when it comes up.

    Whoever needs something that is not ready stands aside, and costs the others nothing. Once it is ready,
    the request comes up where it would have been.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[Entry] = []
        self._count = 0  # of the heap, without those that have ended
        self._aside: dict[Request, Entry] = {}  # in the order in which they came
        self._passed: list[Entry] = []  # overtaken, for the time of one plan

    def __len__(self) -> int:
        return self._count + len(self._aside)

    def copy(self) -> WaitingQueue:
        """The same queue, of copies of the requests."""
        other = WaitingQueue(self._policy)
        live = sorted(entry for entry in self._heap if entry[2].state is State.WAITING)
        other._heap = [(key, arrival, request.copy()) for key, arrival, request in live]  # sorted: a heap
        other._count = len(live)
        aside = [(key, arrival, request.copy()) for key, arrival, request in self._aside.values()]
        other._aside = {entry[2]: entry for entry in aside}
        return other

    def __iter__(self) -> Iterator[Request]:
        """The waiting requests, first to be admitted first, as if what they need were ready."""
        entries = sorted([*self._heap, *self._passed, *self._aside.values()])
        return (request for *_, request in entries if request.state is State.WAITING)

    @property
    def num_ready(self) -> int:
        """Those that could be admitted."""
        return self._count

    @property
    def awaited(self) -> Need | None:
        """What those who stand aside wait for first; None as soon as one of them can be woken."""
        needs = [request.need for request in self._aside]
        return None if any(need is None or need.ready for need in needs) else next(iter(needs), None)

    def push(self, request: Request) -> None:
        self.push_with(request, self._policy.key(request))

    def push_with(self, request: Request, key: object) -> None:
        """As `push`, where the policy has been asked already."""
        entry = self._entry(request, key)
        heapq.heappush(self._heap, entry)
        request.state = State.WAITING
        self._count += 1

    def put_aside(self, request: Request) -> None:
        """As `push`, for a request whose need is not known to be met; `wake` brings it in."""
        self._aside[request] = self._entry(request, self._policy.key(request))
        request.state = State.WAITING

    def _entry(self, request: Request, key: object) -> Entry:
        entry = (key, request.arrival, request)
        for other in (*self._heap[:1], *list(self._aside.values())[:1]):
            _ = entry < other  # a key that cannot be compared raises here, before it is in
        return entry

    def wake(self) -> list[Request]:
        """Those whose need is ready, in the order in which they came; from now on they can be admitted."""
        if not self._aside:
            return []
        woken = [request for request in self._aside if request.need is None or request.need.ready]
        for request in woken:
            heapq.heappush(self._heap, self._aside.pop(request))
            self._count += 1
        return woken

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
            entries = sorted((self._policy.key(request), request.arrival, request) for request in before)
        except BaseException:
            _give_places(order, held)
            raise
        if [request for *_, request in entries] != after:
            _give_places(order, held)
            return False
        self._heap = [entry for entry in entries if entry[2] not in self._aside]  # sorted: a heap
        self._aside |= {entry[2]: entry for entry in entries if entry[2] in self._aside}
        return True

    def peek(self) -> Request | None:
        """The first one; None where there is none, or too many were passed over to look any further."""
        if len(self._passed) == MOST_PASSED:
            return None
        while self._heap and self._heap[0][2].state is not State.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def pop(self) -> Request:
        request = self.peek()
        assert request is not None, "the queue is empty"
        heapq.heappop(self._heap)
        self._count -= 1
        return request

    def pass_over(self) -> None:
        """The first one waits on, and those behind it come up, until `put_back`."""
        self._passed.append(heapq.heappop(self._heap))

    def put_back(self) -> None:
        """Whoever was passed over is where they were."""
        for entry in self._passed:
            heapq.heappush(self._heap, entry)
        self._passed.clear()

    def forget(self, request: Request) -> None:
        """A waiting request has ended; its entry goes when it comes up."""
        assert request.state is not State.WAITING, "end the request before it is forgotten"
        if self._aside.pop(request, None) is None:
            self._count -= 1


def _give_places(requests: Sequence[Request], places: Sequence[tuple[int, int]]) -> None:
    for request, (priority, arrival) in zip(requests, places, strict=True):
        request.priority, request.arrival = priority, arrival
