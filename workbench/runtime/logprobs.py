"""Logprobs of a step's rows, read off their logits: the chosen token, the best, listed ids, the vocabulary.

Knows logits and what lines want of them; neither requests nor how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from workbench.engine.result import Listed, LogprobColumns, Whole
from workbench.params import SamplingParams

Longs = npt.NDArray[np.int64]

ROWS_AT_ONCE = 64  # whose vocabulary is held in float32: of all rows it may take gigabytes

# (logits [m, vocab], chosen [m], k, as_logits) -> logprob, rank, ids and logprobs of the k best
Best = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


class Wanted(NamedTuple):
    """What the sampling lines of a step want to know, beside a token."""

    lines: Longs  # [n]; lines that want anything
    top: int  # best tokens of the line that wants most, the vocabulary apart
    whole: Longs  # [v]; lines that want the vocabulary
    listing: Longs  # [l]; lines that list ids
    listed: Longs  # [l, w]; their ids, then the first again

    def among(self, lines: Longs) -> Wanted:
        """The same, with lines numbered by their place among `lines`, which are ascending."""
        mine = (np.searchsorted(lines, each) for each in (self.lines, self.whole, self.listing))
        own, whole, listing = mine
        return Wanted(own, self.top, whole, listing, self.listed)


class Columns(NamedTuple):
    """Of the rows that sampled; on the device, or on the way from there."""

    sampled: Tensor  # [m] float32
    ranks: Tensor  # [m] integer
    top_ids: Tensor  # [m, k] integer
    top_logprobs: Tensor  # [m, k] float32
    entropies: Tensor  # [m] float32
    listed: Tensor  # [l, w] float32
    listed_ranks: Tensor  # [l, w] int64
    whole: Tensor  # [v, vocab] float32


EACH = 5  # of the columns, those that have a line for each row


def wanted_by(lines: Sequence[tuple[int, SamplingParams]], sampling: int, observers: int) -> Wanted | None:
    """What some of a step's `sampling` lines ask for, and observers of every line; None: nothing.

    Args:
        lines: number and params of every line that may ask, ascending.
        observers: best tokens they want of all lines; 0: none.
    """
    asking = [(line, p) for line, p in lines if p.wants_logprobs]
    if not asking and not observers:
        return None
    listing = [(line, p.logprob_token_ids) for line, p in asking if p.logprob_token_ids]
    width = max((len(ids) for _, ids in listing), default=0)
    return Wanted(
        lines=np.arange(sampling) if observers else np.array([line for line, _ in asking], np.int64),
        top=max(observers, *(p.logprobs or 0 for _, p in asking), 0),
        whole=np.array([line for line, p in asking if p.logprobs == -1], np.int64),
        listing=np.array([line for line, _ in listing], np.int64),
        listed=np.array([[*ids, *ids[:1] * (width - len(ids))] for _, ids in listing], np.int64).reshape(
            len(listing), width
        ),
    )


def read(logits: Tensor, chosen: Tensor, wanted: Wanted, best: Best, *, as_logits: bool) -> Columns:
    """What is wanted of the rows of `logits` [m, vocab]; `chosen` [m] are their tokens."""
    found = best(logits, chosen, wanted.top, as_logits=as_logits)
    ids = torch.from_numpy(wanted.listed).to(logits.device)
    listed = [
        _listed(values_of(part, as_logits), own)
        for part, own in zip(rows_of(logits, wanted.listing), ids.split(ROWS_AT_ONCE), strict=False)
    ]
    whole = [values_of(part, as_logits) for part in rows_of(logits, wanted.whole)]
    return Columns(
        *found,
        entropy(logits),
        torch.cat([values for values, _ in listed]) if listed else logits.new_empty((0, 0)).float(),
        torch.cat([ranks for _, ranks in listed]) if listed else chosen.new_empty((0, 0)),
        torch.cat(whole) if whole else logits.new_empty((0, logits.shape[1]), dtype=torch.float32),
    )


def rows_of(logits: Tensor, lines: Longs) -> list[Tensor]:
    """Some rows, a few at a time."""
    parts = torch.from_numpy(lines).to(logits.device).split(ROWS_AT_ONCE)
    return [logits[part] for part in parts if len(part)]


def values_of(logits: Tensor, as_logits: bool) -> Tensor:
    """What a mode calls a logprob, in float32."""
    return logits.float() if as_logits else logits.log_softmax(-1, dtype=torch.float32)


def _listed(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Values and ranks of ids [l, w]; a rank is 1 + the number of larger values."""
    found = values.gather(-1, ids)
    ranks = [1 + (values > column[:, None]).sum(-1) for column in found.unbind(1)]
    return found, torch.stack(ranks, 1)


def entropy(logits: Tensor) -> Tensor:
    """Of each row's distribution, in nats: [m] float32 of [m, vocab]."""
    parts = [
        torch.special.entr(part.softmax(-1, dtype=torch.float32)).sum(-1)
        for part in logits.split(ROWS_AT_ONCE)
    ]
    return torch.cat(parts)


def to_columns(columns: Columns, wanted: Wanted) -> LogprobColumns:
    """Bring logprobs to the host."""
    sampled, ranks, ids, best, entropies, listed, listed_ranks, whole = (
        tensor.cpu().numpy() for tensor in columns
    )
    own = (wanted.listing.astype(np.int32), listed, listed_ranks.astype(np.int32))
    return LogprobColumns(
        sampled,
        ranks.astype(np.int32),
        ids.astype(np.int32),
        best,
        entropies,
        Listed(*own) if len(wanted.listing) else None,
        Whole(wanted.whole.astype(np.int32), whole) if len(wanted.whole) else None,
    )
