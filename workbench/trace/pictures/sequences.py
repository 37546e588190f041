"""The tokens of each request, prompt and output, from the tables. Knows no block and no text."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from workbench.trace.pictures.namesakes import NOBODY, Namesakes
from workbench.trace.schema import Table

Longs = npt.NDArray[np.int64]

NOT_KNOWN = -1


class Sequences:
    """Reads `requests` and `tokens` as they grow."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of ids
        self._lines: dict[int, list[Longs]] = {}  # of the tokens table, by the number of the id
        self._read = 0
        self._namesakes = Namesakes()
        self._prompts: dict[int, Longs] = {}
        self._requests: Table = {}
        self._tokens: Table = {}

    def take(self, requests: Table, tokens: Table) -> None:
        """What the tables hold by now."""
        self._requests, self._tokens = requests, tokens
        self._namesakes.take(requests)
        new, numbers = tokens["request_id"][self._read :].tolist(), self._numbers
        for name in dict.fromkeys(new):
            numbers.setdefault(name, len(numbers))
        whose = np.array(list(map(numbers.__getitem__, new)), np.int64)
        order = np.argsort(whose, kind="stable")
        starts = np.flatnonzero(np.diff(whose[order], prepend=-1))
        for lines in np.split(order, starts[1:]) if len(order) else ():
            self._lines.setdefault(int(whose[lines[0]]), []).append(lines + self._read)
        self._read += len(new)

    def places(self, names: npt.NDArray[np.object_], times: npt.NDArray[np.float64]) -> Longs:
        """Which lines of requests ids meant at these times, in seconds; NOBODY: none."""
        return self._namesakes.places(names, times)

    def place(self, name: str, at: float) -> int:
        """Which line of requests an id meant at that time, in seconds; NOBODY: none."""
        return int(self.places(np.array([name], np.object_), np.array([at]))[0])

    def of(self, place: int, before: int | None = None) -> Longs:
        """[n]; the tokens of a request, NOT_KNOWN where the trace does not hold one.

        Args:
            place: a line of the requests table.
            before: only tokens sampled before this step; None: all.
        """
        if place == NOBODY:
            return np.empty(0, np.int64)
        prompt = self._prompt(place)
        lines = self._generated(place, before)
        positions = self._tokens["position"][lines]
        size = max(int(self._requests["prompt_tokens"][place]), int(positions.max(initial=-1)) + 1)
        found = np.full(size, NOT_KNOWN)
        found[: len(prompt)] = prompt
        found[positions] = self._tokens["token_id"][lines]
        return found

    def root(self, place: int) -> bytes:
        """The parent of a request's first key; b"" without a salt or an adapter."""
        said = self._requests["cache_root"][place]
        return bytes.fromhex(said) if said else b""

    def _prompt(self, place: int) -> Longs:
        if place not in self._prompts:
            said = self._requests["prompt_token_ids"][place]
            self._prompts[place] = np.array(json.loads(said) if said else [], np.int64)
        return self._prompts[place]

    def _generated(self, place: int, before: int | None) -> Longs:
        names = self._requests["request_id"]
        parts = self._lines.get(self._numbers.get(names[place], NOBODY), [])
        lines = np.concatenate(parts) if parts else np.empty(0, np.int64)
        same = self._namesakes.of(names[place])
        if len(same) > 1:  # an id used again is another request
            begins, times = self._requests["scheduled_s"][list(same)], self._tokens["at_s"][lines]
            lines = lines[np.searchsorted(begins, times, "right") - 1 == same.index(place)]
        return lines if before is None else lines[self._tokens["step"][lines] < before]
