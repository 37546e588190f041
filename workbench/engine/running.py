"""The requests that hold a batch row, as columns in running order.

A steady decode step touches these arrays and no request object. Knows nothing of blocks' contents, budgets
or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.engine.plan import Ints
from workbench.engine.request import Request

Longs = npt.NDArray[np.int64]

NO_TOKEN = -1


class Admission(NamedTuple):
    request: Request
    computed: int  # tokens already in the cache
    capacity: int  # tokens its blocks hold


class RowTokens(NamedTuple):
    """A running request's tokens, as the cache manager reads them."""

    tokens: Ints  # [max_length]; a row of the token store

    def token_bytes(self, begin: int, end: int) -> bytes:
        return self.tokens[begin:end].tobytes()


class Running:
    """Columns over the places 0 .. count - 1 of the running order; a request's batch row never changes.

    One request's tokens, while an overlapped engine runs ahead of its results::

        [0 ........ computed)  written by the steps planned so far
        [0 ........ known)     whose values are on the host
        [0 ........ length)    known, or promised by a step in flight
        [0 ..... capacity)     fit into the blocks it holds

    `known` is kept as `cursor`, the index of the next token in the flat token store.
    """

    def __init__(self, max_rows: int, max_length: int) -> None:
        self.max_rows = max_rows
        self.count = 0
        self.version = 0  # changes with membership
        self.requests: list[Request] = []  # in running order; replaced, never changed in place
        self.tokens: Ints = np.zeros((max_rows, max_length), np.int32)  # by row
        self._flat = self.tokens.reshape(-1)
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._columns: Longs = np.zeros((7, max_rows), np.int64)
        self._stops: Ints = np.full((1, max_rows), NO_TOKEN, np.int32)  # as the tokens they meet
        self._unlooked = 0  # appends ahead in which nobody reaches its look_cursor
        self._place_of_row: Longs = np.full(max_rows, -1, np.int64)
        self._all_places: Ints = np.arange(max_rows, dtype=np.int32)
        self._one_each: Ints = np.ones(max_rows, np.int32)
        self._all_sample = np.ones(max_rows, bool)
        for constant in (self._all_places, self._one_each, self._all_sample):
            constant.flags.writeable = False  # observers see them, in every step of the engine's life
        self._view()

    def copy(self) -> Running:
        """The same rows, held by copies of the requests."""
        other = copy(self)
        other.requests = [request.copy() for request in self.requests]
        other.tokens = np.zeros_like(self.tokens)
        other.tokens[self.row] = self.tokens[self.row]
        other._flat = other.tokens.reshape(-1)
        other._free_rows, other._columns = list(self._free_rows), self._columns.copy()
        other._stops, other._place_of_row = self._stops.copy(), self._place_of_row.copy()
        other._view()
        other.version = self.version
        return other

    def _view(self) -> None:
        n = self.count
        (
            self.row,
            self.computed,
            self.length,
            self.capacity,
            self.end,  # length at which the request ends
            self.cursor,
            self.look_cursor,  # from here on, tokens are looked at one by one: at the end, or 0 if watched
        ) = self._columns[:, :n]
        self.stops = [stops[:n] for stops in self._stops]  # ids that end a request, NO_TOKEN for none
        self.rows: Ints = self.row.astype(np.int32)
        self.rows.flags.writeable = False
        # Constants of every steady step, never written to. The same object each time, which those who
        # write steps down see at a glance.
        self.places, self.one_each = self._all_places[:n], self._one_each[:n]
        self.all_sample = self._all_sample[:n]
        self._place_of_row[self.row] = np.arange(n)
        self._unlooked = 0
        self._request_ids: tuple[str, ...] | None = None
        self.version += 1

    @property
    def request_ids(self) -> tuple[str, ...]:
        """In running order; made once for each membership."""
        if self._request_ids is None:
            self._request_ids = tuple([request.request_id for request in self.requests])
        return self._request_ids

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def add(self, admissions: Sequence[Admission]) -> None:
        """Give each request a row and the next place in running order."""
        for request, computed, capacity in admissions:
            row = request.row = self._free_rows.pop()
            known = len(request.token_ids)
            self.tokens[row, :known] = request.token_ids
            base = row * self.tokens.shape[1]
            self._columns[:, self.count] = (
                row,
                computed,
                known,
                capacity,
                request.max_length,
                base + known,
                0 if request.watched or request.times.first_token is None else base + request.max_length,
            )
            self._set_stops(self.count, request.stop_ids)
            self.count += 1
        self.requests = self.requests + [admission.request for admission in admissions]
        self._view()

    def _set_stops(self, place: int, stop_ids: frozenset[int]) -> None:
        missing = len(stop_ids) - len(self._stops)
        if missing > 0:
            self._stops = np.vstack([self._stops, np.full((missing, self.max_rows), NO_TOKEN, np.int32)])
        self._stops[:, place] = NO_TOKEN
        self._stops[: len(stop_ids), place] = list(stop_ids)

    def remove(self, places: Sequence[int]) -> None:
        """Take requests off their rows; their tokens go back to the request objects."""
        keep = np.ones(self.count, bool)
        keep[list(places)] = False
        for place in places:
            request = self.requests[place]
            request.token_ids = self.tokens_at(place).copy()
            self._place_of_row[request.row] = -1
            self._free_rows.append(request.row)
        self._columns[:, : keep.sum()] = self._columns[:, : self.count][:, keep]
        self._stops[:, : keep.sum()] = self._stops[:, : self.count][:, keep]
        self.requests = [request for request, kept in zip(self.requests, keep, strict=True) if kept]
        self.count = len(self.requests)
        self._view()

    def place_of(self, request: Request) -> int:
        place = int(self._place_of_row[request.row])
        assert self.requests[place] is request, f"{request} does not hold row {request.row}"
        return place

    def places_of_rows(self, rows: Ints) -> Longs:
        places: Longs = self._place_of_row[rows]
        return places

    def known_at(self, place: int) -> int:
        known: int = self.cursor[place] - self.row[place] * self.tokens.shape[1]
        return int(known)

    def tokens_at(self, place: int) -> Ints:
        """The known tokens of the request at a place: a view, valid until the row is given away."""
        tokens: Ints = self.tokens[self.row[place], : self.known_at(place)]
        return tokens

    def source(self, request: Request) -> RowTokens:
        return RowTokens(self.tokens[request.row])

    def unwatch(self, place: int) -> None:
        """From now on the request's tokens are looked at only where it may end."""
        self._unlooked = 0
        self.look_cursor[place] = int(self.row[place]) * self.tokens.shape[1] + int(self.end[place])

    def follow(self, place: int, token_ids: list[int]) -> None:
        """Tokens nobody was promised, behind the newest of a request that no step in flight computes."""
        assert self.known_at(place) == self.length[place], "a token that was promised is still to come"
        cursor, count = int(self.cursor[place]), len(token_ids)
        self._flat[cursor : cursor + count] = token_ids
        self.cursor[place] += count
        self.length[place] += count
        self._unlooked = 0

    def correct(self, places: Longs, drafted: Ints, accepted: Ints) -> None:
        """Drafts were verified: of so many, so few stand. The first token behind them is not there yet."""
        self.computed[places] -= drafted - accepted
        self.length[places] -= drafted

    def retract(self, place: int) -> None:
        """Take back what followed last."""
        self.cursor[place] -= 1
        self.length[place] -= 1

    def advance(self, ones: Longs) -> None:
        """A steady step: each request computes the token it sampled last, and is promised another."""
        self.computed += ones
        self.length += ones

    def append(self, places: Longs | None, token_ids: Ints) -> list[int]:
        """Write one new token at each place (None: at every place, in order).

        Lines of `token_ids` that have to be looked at one by one: a stop id, the last token, or watched.
        """
        if places is None:
            self._flat[self.cursor] = token_ids
            self.cursor += 1
            return self._look(token_ids)
        self._flat[self.cursor[places]] = token_ids
        self.cursor[places] += 1
        self._unlooked = 0
        look = self.cursor[places] >= self.look_cursor[places]
        for stops in self.stops:
            look |= token_ids == stops[places]
        lines: list[int] = look.nonzero()[0].tolist()
        return lines

    def _look(self, token_ids: Ints) -> list[int]:
        """Lines to be looked at after everybody got a token."""
        stopped = token_ids == self.stops[0]
        for stops in self.stops[1:]:
            stopped |= token_ids == stops
        if self._unlooked:
            self._unlooked -= 1
        else:
            left = self.look_cursor - self.cursor
            self._unlooked = max(int(left.min()) - 1, 0)
            stopped |= left <= 0
        lines: list[int] = stopped.nonzero()[0].tolist()
        return lines
