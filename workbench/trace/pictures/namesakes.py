"""Which request an id meant at a time: one used again is another request.

Reads the requests table's ids once, however often it has grown since. Draws nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]
NOBODY = -1
_NOWHERE = [NOBODY]


class Namesakes:
    """The lines of a requests table by id: `take`, then `places`."""

    def __init__(self) -> None:
        self._lines: dict[str, list[int]] = {}
        self._requests: Table = {}
        self._read = 0

    def take(self, requests: Table) -> None:
        """What the table holds by now."""
        self._requests = requests
        for line, name in enumerate(requests["request_id"][self._read :].tolist(), self._read):
            self._lines.setdefault(name, []).append(line)
        self._read = len(requests["request_id"])

    def of(self, name: str) -> list[int]:
        """All lines with this id, in order of arrival; at least one."""
        return self._lines[name]

    def places(self, names: npt.NDArray[np.object_], times: npt.NDArray[np.float64]) -> Longs:
        """[n]; the line that each of the ids [n] meant at its time, in seconds; NOBODY where there is none.

        That is the latest that was scheduled by then.
        """
        listed = names.tolist()
        found = np.array([self._lines.get(name, _NOWHERE)[-1] for name in listed], np.int64)
        if len(self._lines) == self._read:
            return found
        scheduled = self._requests["scheduled_s"]
        for place, name in enumerate(listed):
            lines = self._lines.get(name, _NOWHERE)
            if len(lines) > 1:
                by_then = [line for line in lines if scheduled[line] <= times[place]]
                found[place] = by_then[-1] if by_then else lines[0]
        return found
