"""What one step computes: plain arrays, complete when made, the same on every rank.

A plan knows rows, positions and block numbers. It holds no tensors, no callables and no token values of
steps still in flight: those live where the runner keeps its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.params import SamplingParams

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class Addition(NamedTuple):
    """A request that enters the batch, with everything the runner has to know of it."""

    row: int  # where it lives in the batch until it leaves: 0 .. max_num_seqs - 1
    request_id: str
    token_ids: Ints  # [num_tokens]; prompt, then what was generated before a preemption
    num_prompt_tokens: int
    blocks: tuple[Ints, ...]  # per KV group [num_blocks]: found in the cache, then reserved
    params: SamplingParams
    seed: int  # 64 bits; with the position it decides every random draw of this request
    eos_token_ids: tuple[int, ...]  # () with ignore_eos; what min_tokens has to suppress
    adapter: int | None = None  # slot of its adapter; None: the base model
    bad_words: tuple[tuple[int, ...], ...] = ()  # tokens of each; its last is not to follow the others
    score_from: int = 0  # first prompt token whose logprobs it wants; 0: it wants none


class Load(NamedTuple):
    """An adapter's weights have to be copied to the device.

    No row of an earlier plan uses the slot after this plan is made; rows of this one may, if they enter with
    it, and then the copy comes first.
    """

    slot: int
    adapter: int  # the engine's number of it


class Scoring(NamedTuple):
    """Prompt tokens whose logprobs a step tells: of some of its chunks, the tokens [firsts, ends).

    A token is predicted by the one before it, so that a chunk tells of tokens one further on than its
    own.
    """

    lines: Ints  # [s]; places in the plan's rows, ascending
    firsts: Ints  # [s]; positions
    ends: Ints  # [s]


class Drafts(NamedTuple):
    """Tokens a step verifies: the last ones that some of its chunks compute.

    A chunk of `count` tokens, d of them drafts, samples 1 + d times: behind what is known, and behind each
    draft. What is sampled in a draft's place is the model's own choice there; as long as that is the draft,
    the next one counts too::

        one row's tokens   [... start)[known][draft 0][draft 1] ... [draft d-1]
        sampled behind                   first  extra 0  extra 1       extra d-1
    """

    lines: Ints  # [s]; places in the plan's rows, ascending; all of them sample
    counts: Ints  # [s]; drafts of each, >= 1
    token_ids: Ints  # [counts.sum()]; one line's after the other's


class Asks(NamedTuple):
    """Drafts that a drafter in the runner is to find for the step to come, behind what this one samples."""

    lines: Ints  # [a]; places in the plan's rows, ascending; all of them sample
    most: Ints  # [a]; drafts wanted of each, >= 1


class Yields(NamedTuple):
    """What a step samples: a token for each of its lines that sample, then those behind drafts."""

    rows: Ints  # [m + e]; batch rows
    positions: Ints  # [m + e]; where in its request each token belongs
    lines: npt.NDArray[np.int64]  # [m + e]; places of those rows in the plan


class Growth(NamedTuple):
    """Blocks appended to the block tables of rows already in the batch, for one KV group."""

    rows: Ints  # [g]
    places: Ints  # [g]; index in the row's block table
    blocks: Ints  # [g]; the block that goes there


class StepPlan(NamedTuple):
    """One step: who computes which tokens, and what changed in the batch since the last plan.

    ::

        one row's tokens   [0 ......... start)[start ... start + count)[......]
                            in the cache       this step writes          later
    """

    index: int  # type: ignore[assignment]  # 0, 1, 2 ... of the engine; shadows tuple.index, unused here
    budget: int  # tokens this step may hold
    rows: Ints  # [n]; batch rows in running order, each once
    starts: Ints  # [n]; position of the first token computed
    counts: Ints  # [n]; tokens computed, >= 1
    samples: Bools  # [n]; the last position yields a new token
    removed: Ints  # rows emptied since the last plan; applied before `added`
    added: tuple[Addition, ...]
    grown: tuple[Growth, ...]  # one for each KV group
    logprobs: int = 0  # top logprobs that observers want of every row that samples, asked for or not; 0: none
    scoring: Scoring | None = None  # None: no chunk tells of prompt tokens
    drafts: Drafts | None = None  # None: nothing is verified
    loads: tuple[Load, ...] = ()  # what is to lie in slots of adapters from the next plan on
    asks: Asks | None = None  # None: no drafts are asked of the runner

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step."""
        return int(self.counts.sum())

    @property
    def num_drafts(self) -> int:
        """Of them, drafts."""
        return 0 if self.drafts is None else len(self.drafts.token_ids)

    @property
    def yields(self) -> Yields:
        """The tokens it samples: first one of each line, then those behind drafts, line after line."""
        ends, drafts, lines = self.starts + self.counts, self.drafts, self.samples.nonzero()[0]
        if drafts is None:
            return Yields(self.rows[lines], ends[lines], lines)
        ends[drafts.lines] -= drafts.counts
        drafting = drafts.lines.repeat(drafts.counts)
        positions = np.concatenate([ends[lines], ends[drafting] + 1 + within(drafts.counts)])
        lines = np.concatenate([lines, drafting])
        return Yields(self.rows[lines], positions, lines)


def within(counts: Ints) -> Ints:
    """0 .. count - 1 for each of the counts, one after the other."""
    places: Ints = np.arange(counts.sum(), dtype=np.int32)
    if len(counts) == 1:
        return places
    return places - np.repeat(np.cumsum(counts, dtype=np.int32) - counts, counts)
