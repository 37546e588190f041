"""Which request an id meant at a time: one used again is another request.

Reads the requests table's ids once, however often it has grown since. Draws nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]
NOBODY = -1


class Namesakes:
    """The lines of a requests table by id: `take`, then `places`."""

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}
        self._earlier: dict[str, list[int]] = {}  # of an id that came again
        self._requests: Table = {}
        self._read = 0

    def take(self, requests: Table) -> None:
        """What the table holds by now."""
        self._requests = requests
        for line, name in enumerate(requests["request_id"][self._read :].tolist(), self._read):
            if name in self._latest:
                self._earlier.setdefault(name, []).append(self._latest[name])
            self._latest[name] = line
        self._read = len(requests["request_id"])

    def of(self, name: str) -> list[int]:
        """All lines with this id, in order of arrival; at least one."""
        return [*self._earlier.get(name, ()), self._latest[name]]

    def places(self, names: npt.NDArray[np.object_], times: npt.NDArray[np.float64]) -> Longs:
        """[n]; the line that each of the ids [n] meant at its time, in seconds; NOBODY where there is none.

        That is the latest that was scheduled by then.
        """
        listed = names.tolist()
        found = np.array([self._latest.get(name, NOBODY) for name in listed], np.int64)
        if not self._earlier:
            return found
        scheduled = self._requests["scheduled_s"]
        for place, name in enumerate(listed):
            if name in self._earlier:
                lines = self.of(name)
                by_then = [line for line in lines if scheduled[line] <= times[place]]
                found[place] = by_then[-1] if by_then else lines[0]
        return found
