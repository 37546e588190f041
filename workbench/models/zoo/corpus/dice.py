"""Seeded chance with the same outcome on every machine. Knows nothing of what is drawn.

Only `random.Random.random()` is promised to stay the same across Python versions, so every other draw is
built on it here; seeds come from blake2b over the parts' text, never from `hash()`.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def digest(*parts: object) -> int:
    """A 64-bit number from the parts' text, the same in every process."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


class Dice:
    """A stream of draws that depends on the parts of its seed alone."""

    __slots__ = ("roll",)

    def __init__(self, *seed: object) -> None:
        self.roll = random.Random(digest(*seed)).random  # () -> float in [0, 1)

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.roll() * n)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + int(self.roll() * (high - low + 1))

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.roll() < p

    def pick(self, seq: Sequence[T]) -> T:
        """One element."""
        return seq[int(self.roll() * len(seq))]

    def weighted(self, pairs: Sequence[tuple[T, float]]) -> T:
        """One value of (value, weight) pairs, in proportion to its weight."""
        left = self.roll() * sum(weight for _, weight in pairs)
        for value, weight in pairs:
            left -= weight
            if left < 0:
                return value
        return pairs[-1][0]

    def shuffled(self, seq: Sequence[T]) -> list[T]:
        """A new list in random order."""
        out = list(seq)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.roll() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, seq: Sequence[T], k: int) -> list[T]:
        """k elements at distinct positions, in random order."""
        if k * 3 > len(seq):
            return self.shuffled(seq)[:k]
        seen: dict[int, None] = {}
        while len(seen) < k:
            seen[int(self.roll() * len(seq))] = None
        return [seq[i] for i in seen]

    def log_between(self, low: int, high: int) -> int:
        """An integer in [low, high], roughly log-uniform: short ones as common as long ones."""
        return min(high, int(low * ((high + 1) / low) ** self.roll()))
