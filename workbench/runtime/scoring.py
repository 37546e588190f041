"""Logprobs of prompt tokens, from the hidden states that predict them, a slice of tokens at a time.

A prompt of 32,000 tokens has gigabytes of logits, of which there is never more than a slice. Knows chunks
and what they want; neither requests nor caches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition, StepPlan
from workbench.engine.result import Scores
from workbench.runtime.logprobs import Best, Longs, rows_of, values_of

SLICE_BYTES = 1 << 28  # of logits; in plain torch, logprobs and comparisons of them take as much again
TILE = 128  # rows of a product's tiles

# Hidden states [m, hidden], and which of all there are is the first of them -> logits [m, vocab].
Project = Callable[[Tensor, int], Tensor]


class Scored(NamedTuple):
    """The prompt tokens a step tells of, one chunk's after the other's."""

    places: Longs  # [t]; where in the step's tokens the one that predicts each is
    token_ids: Longs  # [t]
    counts: Longs  # [s]; tokens of each chunk
    wants: Longs  # [s]; best tokens each chunk's request wants; -1: the vocabulary

    @property
    def top(self) -> int:
        """Best tokens that are wanted by who wants most, the vocabulary apart."""
        return max(0, int(self.wants.max(initial=0)))

    @property
    def whole(self) -> np.ndarray:
        """[t] bool; tokens for which the vocabulary is wanted."""
        return np.repeat(self.wants == -1, self.counts)


class PromptColumns(NamedTuple):
    """What a step tells of its prompt tokens; on the device, or on the way from there."""

    sampled: Tensor  # [t] float32; of the tokens themselves
    ranks: Tensor  # [t] integer
    top_ids: Tensor  # [t, k] integer
    top_logprobs: Tensor  # [t, k] float32
    whole: list[np.ndarray]  # [vocab] float32, host, for each token of which it is wanted

    def moved(self, move: Callable[[Tensor], Tensor]) -> PromptColumns:
        """The same, with every tensor somewhere else."""
        return self._replace(
            sampled=move(self.sampled),
            ranks=move(self.ranks),
            top_ids=move(self.top_ids),
            top_logprobs=move(self.top_logprobs),
        )


def scored_by(plan: StepPlan, begins: Longs, additions: Mapping[int, Addition]) -> Scored | None:
    """The prompt tokens a plan wants told; None: none.

    Args:
        begins: [n]; where in the step's tokens each line of the plan begins.
        additions: what is known of each batch row.
    """
    if plan.scoring is None:
        return None
    lines, firsts, ends = (column.astype(np.int64) for column in plan.scoring)
    owners = [additions[row] for row in plan.rows[lines].tolist()]
    spans = list(zip(firsts.tolist(), ends.tolist(), strict=True))
    before = begins[lines] - plan.starts[lines] - 1  # of the token at position 0
    return Scored(
        places=np.concatenate(
            [place + np.arange(*span) for place, span in zip(before.tolist(), spans, strict=True)]
        ),
        token_ids=np.concatenate(
            [owner.token_ids[first:end] for owner, (first, end) in zip(owners, spans, strict=True)]
        ).astype(np.int64),
        counts=ends - firsts,
        wants=np.array([owner.params.prompt_logprobs or 0 for owner in owners], np.int64),
    )


def score(
    hidden: Tensor,
    scored: Scored,
    chosen: Tensor,
    project: Project,
    best: Best,
    vocab: int,
    *,
    as_logits: bool,
) -> PromptColumns:
    """Logprobs of the tokens. Those of the whole vocabulary go to the host at once: there are too many.

    Args:
        hidden: [t, hidden]; the states that predict the tokens. chosen: [t] int64; the tokens.
    """
    rows = slice_rows(vocab * hidden.element_size())
    parts, whole, wants = [], [], scored.whole
    for begin in range(0, len(hidden), rows):
        logits = project(hidden[begin : begin + rows], begin)
        parts.append(best(logits, chosen[begin : begin + rows], scored.top, as_logits=as_logits))
        for own in rows_of(logits, wants[begin : begin + rows].nonzero()[0]):
            whole += [*values_of(own, as_logits).cpu().numpy()]
        del logits  # or there are two slices when the next is computed
    sampled, ranks, ids, top = (torch.cat(column) for column in zip(*parts, strict=True))
    return PromptColumns(sampled, ranks, ids, top, whole)


def slice_rows(row_bytes: int) -> int:
    """Rows of so many bytes that make a slice."""
    rows = max(1, SLICE_BYTES // row_bytes)
    return rows if rows < TILE else rows // TILE * TILE


def to_scores(scoring: PromptColumns, scored: Scored) -> tuple[Scores, ...]:
    """Each chunk's own part, on the host."""
    sampled, ranks, ids, best = (column.cpu().numpy() for column in scoring[:4])
    found, ends, rows = [], scored.counts.cumsum().tolist(), iter(scoring.whole)
    for end, count, want in zip(ends, scored.counts.tolist(), scored.wants.tolist(), strict=True):
        part, k = slice(end - count, end), max(want, 0)
        own = [next(rows) for _ in range(count)] if want == -1 else []
        # Copies: what one request keeps must not hold the memory of the others.
        found.append(
            Scores(
                sampled[part].copy(),
                ranks[part].astype(np.int32),
                ids[part, :k].astype(np.int32),
                best[part, :k].copy(),
                np.array(own, np.float32).reshape(len(own), -1 if own else 0),
            )
        )
    return tuple(found)
