"""How much is drafted: as many tokens of each request as raise the tokens a second. Knows no drafter.

What a step of T tokens takes is measured while steps are decodes, and so is how often each request's drafts
were right. A draft at place j counts when all before it did, with the chance p^j; drafts are taken in the
order of their chances, over all requests, as long as (tokens expected) / (seconds of such a step) grows.
Where a step costs by the token, as in a large batch, it never does; where one costs by itself, for long.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from workbench.engine.plan import Bools
from workbench.engine.running import Longs

Floats = npt.NDArray[np.float64]

PRIOR = 1.5  # drafts' worth of experience a new request begins with, of all requests before it
FADE = 0.8  # of what was seen, at each verification: the last five count most
LEAST_SEEN = 3  # plain steps of a size that are timed before any drafts
HOLDS = 4  # steps for which a decision holds
HOLDS_NONE = 64  # and, at the longest, one that nobody drafts
REST, LONGEST_REST = 64, 1024  # steps without drafts before one is tried again, and after many vain trials
SHORT_REST = 4  # where drafts were right before: a copy that was interrupted goes on
GOOD = 2  # right drafts a verification; so many make a good one of a request
FADE_ALL = 0.9  # as FADE, of what is seen of all requests
HOPE = 0.9  # chance of a draft that is worth a trial
LEAST_PART = 0.1  # of a step's time without drafts that one with drafts takes at the least
LEAST_GAIN = 1.02  # in tokens a second: less is lost in what is measured badly
DEARER = 1.1  # steps without drafts that take so much longer: what was not worth it may be
FREE, STRIDE = 16, 1.25  # steps so large may be tried unseen; beyond, so much larger than any that was seen


class Means:
    """Numbers by a step's tokens: a mean for each size, sizes an eighth of an octave apart."""

    def __init__(self) -> None:
        self._tokens: dict[int, float] = {}
        self._values: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._points: tuple[Floats, Floats] | None = None  # None: they have to be looked at again

    def add(self, tokens: int, value: float) -> None:
        size, self._points = _size(tokens), None
        seen = self._seen[size] = self.seen(tokens) + 1
        weight = max(0.1, 1 / seen)
        for means, new in ((self._tokens, float(tokens)), (self._values, value)):
            before = means.get(size, new)
            means[size] = before + weight * (new - before)

    def seen(self, tokens: int) -> int:
        """How many of that size."""
        return self._seen.get(_size(tokens), 0)

    @property
    def largest(self) -> float:
        """Tokens of the largest step; 0: there is none."""
        return max(self._tokens.values(), default=0.0)

    def of(self, tokens: int) -> float | None:
        """That of a size that was seen."""
        return self._values.get(_size(tokens))

    def points(self) -> tuple[Floats, Floats]:
        """[sizes] each; tokens, ascending, and their means."""
        if self._points is None:
            order = sorted(self._tokens, key=self._tokens.__getitem__)
            tokens = np.array([self._tokens[size] for size in order])
            self._points = tokens, np.array([self._values[size] for size in order])
        return self._points


class StepCosts:
    """Seconds of a step by its tokens, and of one that has drafts among them.

    Those are found, and verified, between one step and the next, while the device waits; steps without
    overlap.
    """

    def __init__(self) -> None:
        self._plain, self._drafting = Means(), Means()

    def took(self, tokens: int, seconds: float, drafts: int) -> None:
        """A step of so many tokens, drafts among them, took so long."""
        means = self._drafting if drafts else self._plain
        known = means.of(tokens)
        if known is None:
            known = float(self.drafting(np.array([float(tokens)]))[0]) if drafts else self.plain(tokens)
        # What is twice as slow as ever, or as steps around it, is a pause of somebody else's, or compiles
        # something, the first time; if it stays, the mean gets there too.
        means.add(tokens, min(seconds, 2 * known) if known else seconds)

    def seen(self, tokens: int) -> int:
        """Steps of that size, without drafts, that were timed."""
        return self._plain.seen(tokens)

    @property
    def limit(self) -> int:
        """Tokens of the largest step that may be tried."""
        return max(FREE, int(STRIDE * max(self._plain.largest, self._drafting.largest)))

    def plain(self, tokens: int) -> float:
        """Seconds without drafts; 0 where no step was seen."""
        known = self._plain.of(tokens)
        return float(self._without(np.array([float(tokens)]))[0]) if known is None else known

    def _without(self, tokens: Floats) -> Floats:
        """From the sizes around; beyond the largest, as if tokens were free."""
        counts, seconds = self._plain.points()
        found: Floats = np.interp(tokens, counts, seconds) if len(counts) else np.zeros(len(tokens))
        return found

    def drafting(self, tokens: Floats) -> Floats:
        """Seconds with drafts: what they add grows from nothing to the least that was seen, and so on."""
        counts, seconds = self._drafting.points()
        more = seconds - self._without(counts)
        plain = self._without(tokens)
        found: Floats = plain + np.interp(tokens, [0.0, *counts], [0.0, *more])
        return np.maximum(found, LEAST_PART * plain)


def _size(tokens: int) -> int:
    return round(8 * math.log2(tokens))


class Pace:
    """What was seen of each batch row, and what follows from it."""

    def __init__(self, max_rows: int, most: int) -> None:
        """`most`: drafts of a request in a step."""
        self._most = most
        self._costs = StepCosts()
        self._right, self._wrong = np.zeros(max_rows), np.zeros(max_rows)
        self._all_right, self._all_wrong = 2.0, 1.0  # of all requests; so much trust there is at first
        self.holds = HOLDS  # steps for which what `wanted` said last holds
        self._tried, self._gained = np.zeros(max_rows), np.zeros(max_rows)  # verifications; drafts right
        # A row's next request goes on with these: none may be long enough to try at all.
        self._rest: Longs = np.zeros(max_rows, np.int64)  # steps until a row without drafts tries one
        self._wait: Longs = np.full(max_rows, REST)  # how long its next rest is
        self._untried = 0  # steps since the last trial
        self._vain: tuple[Floats, float] | None = None  # what was not worth it: see `by_chance`

    def enter(self, row: int) -> None:
        """The row holds another request."""
        share = self._all_right / (self._all_right + self._all_wrong)
        self._right[row], self._wrong[row] = PRIOR * share, PRIOR * (1 - share)
        self._tried[row] = self._gained[row] = 0

    def took(self, tokens: int, seconds: float, drafts: int) -> None:
        """A step of decodes, drafts among its tokens, took so long from the end of the one before."""
        self._costs.took(tokens, seconds, drafts)
        if drafts:
            self._vain = None

    def verified(self, rows: Longs, drafted: Longs, accepted: Longs) -> None:
        """Of so many drafts of each row, so many were right before one was wrong."""
        failed = accepted < drafted
        self._right[rows] = FADE * self._right[rows] + accepted
        self._wrong[rows] = FADE * self._wrong[rows] + failed
        self._all_right = FADE_ALL * self._all_right + float(accepted.sum()) / len(rows)
        self._all_wrong = FADE_ALL * self._all_wrong + float(failed.sum()) / len(rows)
        self._tried[rows] += 1
        self._gained[rows] += accepted
        rest = np.where(self._good(rows), SHORT_REST, REST)
        wait = np.where(accepted > 0, rest, self._wait[rows])
        self._wait[rows], self._rest[rows] = wait, np.minimum(self._rest[rows], wait)

    def _good(self, rows: Longs) -> Bools:
        """[n]; whether drafts of the rows' requests have been right often."""
        good: Bools = self._gained[rows] >= GOOD * np.maximum(self._tried[rows], 1)
        return good

    def wanted(self, rows: Longs, gone: int | None = None) -> Longs:
        """[n]; drafts of each of the rows that run, for the next steps.

        `gone`: steps since it was asked last; None: as many as that was to hold for.
        """
        held, self.holds = self.holds if gone is None else gone, HOLDS
        if self._unknown(rows):
            return np.zeros(len(rows), np.int64)
        wanted = self.by_chance(rows)
        resting = wanted == 0
        self._rest[rows[~resting]] = 0
        if not resting.any():
            return wanted
        self._untried += held
        # A trial slows everybody's step: of many requests, those whose rests are over wait for one another.
        trying = resting & (self._rest[rows] == 1) & (self._untried >= min(len(rows), REST))
        self._rest[rows[resting]] = np.where(
            self._rest[rows] > 0, np.maximum(self._rest[rows] - held, 1), self._wait[rows]
        )[resting]
        if trying.any():
            trial, trying = self._trial(rows, trying)
            self._untried = 0
            self._wait[rows[trying]] = np.minimum(2 * self._wait[rows[trying]], LONGEST_REST)
            self._rest[rows[trying]] = self._wait[rows[trying]]
            wanted = np.where(trying, trial, wanted)
            if trial.any() and np.array_equal(wanted > 0, trying):
                self.holds = 2  # nobody else drafts: one to find them, one to verify them
        if not wanted.any():
            # Of many requests somebody's rest is always about to end, and to decide takes a while.
            self.holds = min(HOLDS_NONE, max(len(rows), int(self._rest[rows].min())))
        return wanted

    def _unknown(self, rows: Longs) -> bool:
        """Whether nobody runs, or too few steps of so many were timed."""
        return not len(rows) or self._costs.seen(len(rows)) < LEAST_SEEN

    def by_chance(self, rows: Longs) -> Longs:
        """[n]; drafts that are worth it by what was seen of each of the rows, with no regard to rests.

        Chances no better than those that were not worth it are not looked at until drafts are timed, or steps
        without any take longer.
        """
        if self._unknown(rows):
            return np.zeros(len(rows), np.int64)
        right = self._right[rows]
        share = right / (right + self._wrong[rows])
        ascending, plain = np.sort(share), self._costs.plain(len(rows))
        if self._vain is not None:
            vain, before = self._vain
            if len(vain) == len(rows) and plain <= DEARER * before and (ascending <= vain).all():
                return np.zeros(len(rows), np.int64)
        wanted = self._worth(share[:, None] ** np.arange(1, self._most + 1))
        if not wanted.any():
            self._vain = ascending, plain
        return wanted

    def _trial(self, rows: Longs, due: Bools) -> tuple[Longs, Bools]:
        """[n] each; drafts to try, if they could be worth it at all, and who tries them, of those due.

        A single draft tells whether there is something to copy, where it can be worth its step. Where that
        takes many, somebody tries many, and the others wait for the next trial.
        """
        if self._worth(np.full((len(rows), 1), HOPE)).any():
            return np.where(self._good(rows), self._most, 1), due
        first = np.arange(len(rows)) == due.argmax()
        trial = self._worth(np.where(first[:, None], HOPE ** np.arange(1, self._most + 1), 0.0))
        return trial, first if trial.any() else due

    def _worth(self, chances: Floats) -> Longs:
        """[n]; how many of each row's `chances` [n, k], which fall from left to right, are worth it."""
        rows, most = chances.shape
        order = np.argsort(-chances, None, kind="stable")[: max(0, self._costs.limit - rows)]
        expected = rows + np.concatenate([[0.0], chances.reshape(-1)[order].cumsum()])
        seconds = self._costs.drafting(rows + np.arange(len(expected), dtype=np.float64))
        seconds[0] = self._costs.plain(rows)
        speed = expected / seconds
        count = int(speed.argmax())
        if speed[count] < LEAST_GAIN * speed[0]:
            count = 0
        worth: Longs = np.bincount(order[:count] // most, minlength=rows)
        return worth
