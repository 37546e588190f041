"""What the steps of each request add up to, taken a batch of steps at a time. Knows numpy; no table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workbench.trace.chunks import Bools, Chunks
from workbench.trace.facts import NAN, Facts, Longs
from workbench.trace.picks import Picks

Floats = npt.NDArray[np.float64]


class Tally:
    """Sums, and the first and last tokens, by the requests' numbers."""

    def __init__(self) -> None:
        self.computed, self.recomputed, self.overshoot = _zeros(0), _zeros(0), _zeros(0)
        self.accepted, self.rejected = _zeros(0), _zeros(0)  # drafts
        self.first_at, self.last_at = _unknown(0), _unknown(0)  # clock readings; NaN: no token yet
        self._held = _zeros(0)  # tokens that the steps hold
        self._first, self._last = _zeros(0), _zeros(0)  # positions of the tokens

    def add(self, size: int, chunks: Chunks, picks: Picks) -> None:
        """The next steps; `size`: the number of requests by now."""
        self._grow(size)
        self.computed += sum_by(chunks.request, chunks.count, size)
        self.recomputed += sum_by(chunks.request, chunks.recomputed, size)
        self.overshoot += sum_by(chunks.request, chunks.count * chunks.dropped, size)
        self.accepted += sum_by(chunks.request, chunks.accepted, size)
        self.rejected += sum_by(chunks.request, chunks.rejected, size)
        new = self._held == 0
        self._held += np.bincount(picks.request, minlength=size)
        new &= self._held > 0
        first, first_at = self._first.copy(), self.first_at.copy()
        first[picks.request[::-1]] = picks.position[::-1]  # the first line of a request wins
        first_at[picks.request[::-1]] = picks.at[::-1]
        self._first[new], self.first_at[new] = first[new], first_at[new]
        self._last[picks.request], self.last_at[picks.request] = picks.position, picks.at

    def _grow(self, size: int) -> None:
        more = size - len(self._held)
        sums = ("computed", "recomputed", "overshoot", "accepted", "rejected")
        for name in (*sums, "_held", "_first", "_last"):
            setattr(self, name, np.concatenate([getattr(self, name), _zeros(more)]))
        for name in ("first_at", "last_at"):
            setattr(self, name, np.concatenate([getattr(self, name), _unknown(more)]))

    def outputs(self, facts: Facts) -> Longs:
        """Tokens that each request generated."""
        prompt = prompt_lengths(facts)
        reached = np.where(self._held > 0, self._last - prompt + 1, 0)
        reached = np.where(prompt > 0, reached, self._held)  # of an unknown prompt places say nothing
        told = [r.num_output for r in facts.requests]
        return np.array([r if t is None else t for r, t in zip(reached, told, strict=True)], np.int64)

    def whole(self, facts: Facts) -> Bools:
        """Whether the steps hold a request's tokens from the first one on."""
        first = np.where(self._held > 0, self._first - prompt_lengths(facts), 0)
        nothing_yet = np.array([not (r.num_output or r.ran_before) for r in facts.requests], np.bool_)
        whole: Bools = (first == 0) & ((self._held > 0) | nothing_yet)
        return whole


def prompt_lengths(facts: Facts) -> Longs:
    """[requests]; tokens."""
    return np.array([len(r.prompt_token_ids) for r in facts.requests], np.int64)


def sum_by(keys: Longs, values: npt.NDArray[np.int64], size: int) -> Longs:
    """[size]; the sum of the values of each key."""
    return np.bincount(keys, weights=values, minlength=size).astype(np.int64)


def _zeros(size: int) -> Longs:
    return np.zeros(size, np.int64)


def _unknown(size: int) -> Floats:
    return np.full(size, NAN)
