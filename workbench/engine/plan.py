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
    adapter: int | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  # tokens of each; its last is not to follow the others
    score_from: int = 0  # first prompt token whose logprobs it wants; 0: it wants none


class Scoring(NamedTuple):
    """Prompt tokens whose logprobs a step tells: of some of its chunks, the tokens [firsts, ends).

    A token is predicted by the one before it, so that a chunk tells of tokens one further on than its
    own.
    """

    lines: Ints  # [s]; places in the plan's rows, ascending
    firsts: Ints  # [s]; positions
    ends: Ints  # [s]


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

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step."""
        return int(self.counts.sum())
