"""What one step yielded: plain arrays, in the order of the plan's rows that sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.engine.plan import Ints, StepPlan

Floats = npt.NDArray[np.float32]


class Listed(NamedTuple):
    """Of lines whose requests list ids: those ids, in the order of the list; what is behind it is padding."""

    lines: Ints  # [l]; ascending
    logprobs: Floats  # [l, w]
    ranks: Ints  # [l, w]


class Whole(NamedTuple):
    """Of lines whose requests ask for the vocabulary."""

    lines: Ints  # [v]; ascending
    logprobs: Floats  # [v, vocab]; by token id


class LogprobColumns(NamedTuple):
    """Log probabilities of one step, a line for each token that was sampled.

    `top_ids` is as wide as the largest request in the batch, or an observer, wants; each reads its first k.
    """

    sampled: Floats  # [m]; of the sampled token, natural log
    ranks: Ints  # [m]; of the sampled token: 1 + the number of tokens with a larger logprob
    top_ids: Ints  # [m, k]; best first
    top_logprobs: Floats  # [m, k]
    entropies: Floats  # [m]; nats, of the distribution the logprobs are of
    listed: Listed | None = None  # None when no row lists ids
    whole: Whole | None = None  # None when no row asks for the vocabulary

    @property
    def without_whole(self) -> LogprobColumns:
        """What may be kept for long: the vocabulary of many rows takes gigabytes."""
        return self if self.whole is None else self._replace(whole=None)


class Scores(NamedTuple):
    """Log probabilities of the prompt tokens of one chunk, a line each, as their request wants them."""

    sampled: Floats  # [t]; of the tokens themselves
    ranks: Ints  # [t]
    top_ids: Ints  # [t, k]; best first
    top_logprobs: Floats  # [t, k]
    whole: Floats  # [t, vocab] where the vocabulary is wanted, else [0, vocab]

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Of prompt tokens, one chunk's after the other's; the vocabulary, which may be large, left out."""
        if not parts:
            numbers, ids = np.empty(0, np.float32), np.empty(0, np.int32)
            return cls(numbers, ids, ids[:, None], numbers[:, None], numbers[:, None])
        columns = zip(*((*part[:-1], part.whole[:0]) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def part(self, begin: int, end: int, top: int | None = None) -> Scores:
        """A copy of some lines, the vocabulary left out; of the best tokens no more than `top`."""
        lines, best = slice(begin, end), (slice(begin, end), slice(top))
        return Scores(
            self.sampled[lines].copy(),
            self.ranks[lines].copy(),
            self.top_ids[best].copy(),
            self.top_logprobs[best].copy(),
            self.whole[:0].copy(),
        )


class Failure(NamedTuple):
    """A row whose token could not be sampled as asked: its request ends."""

    row: int
    message: str


class Forced(NamedTuple):
    """Tokens that have to follow the one a row sampled: its grammar leaves no choice."""

    row: int
    start: int  # position of the first
    token_ids: Ints  # [f]


class Proposed(NamedTuple):
    """Drafts that were found in the runner, for the step to come."""

    rows: Ints  # [p]; batch rows
    lengths: Ints  # [p]; tokens each of them has by then: its first draft comes behind these
    counts: Ints  # [p]; drafts of each
    token_ids: Ints  # [counts.sum()]; one row's after the other's


class StepResult(NamedTuple):
    """The tokens of one step and the times at which it was launched and collected.

    Of m rows that sample, with e drafts to be verified: the first m tokens are a row's each, the others were
    sampled behind the drafts (`StepPlan.yields`). Which of these stand, `accepted` says.
    """

    index: int  # type: ignore[assignment]  # the plan's; shadows tuple.index, unused here
    rows: Ints  # [m]; plan.rows[plan.samples]
    token_ids: Ints  # [m + e]
    logprobs: LogprobColumns | None  # of m + e lines; None when no row asked
    launch_s: float  # clock when the runner took the plan
    collect_s: float  # clock when the tokens were on the host
    device_s: float  # seconds the device computed
    scores: tuple[Scores, ...] = ()  # a chunk each, in the order of the plan's scoring
    failed: tuple[Failure, ...] = ()  # rows whose tokens count for nothing
    masked: Floats | None = None  # [m + e]; share of the vocabulary a grammar ruled out, NaN where none does
    forced: tuple[Forced, ...] = ()  # of rows that no step in flight computes
    accepted: Ints | None = None  # [s]; leading drafts of each of the plan's drafts' lines that stand
    proposed: Proposed | None = None  # None: none were asked for, or found


def accepted_by(plan: StepPlan, token_ids: Ints, lost: Ints | None = None) -> Ints | None:
    """[s]; how many of each line's drafts are what was sampled in their places, up to the first that is not.

    Args:
        token_ids: [m + e]; what the plan's step sampled.
        lost: those of the m + e that count for nothing; nor does a draft ahead of one, so that the next step
            samples there anew, and fails.
    """
    drafts = plan.drafts
    if drafts is None:
        return None
    begins = drafts.counts.cumsum() - drafts.counts
    m = len(token_ids) - len(drafts.token_ids)
    rivals = token_ids[m - 1 : -1].copy()  # behind a draft stands the next one's rival
    rivals[begins] = token_ids[plan.samples.cumsum()[drafts.lines] - 1]
    differs = rivals != drafts.token_ids
    if lost is not None:
        differs[lost[lost >= m] - m] = True
    wrong = np.append(differs.nonzero()[0], len(rivals))
    first = wrong[wrong.searchsorted(begins)]  # that of each line, or of one behind it
    accepted: Ints = np.minimum(first - begins, drafts.counts).astype(np.int32)
    return accepted
