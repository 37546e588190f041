"""Words that rows must not say, kept on the device: the last token of each is held back behind the others.

What was generated lives on the device alone while steps overlap, so that it is compared there. Knows rows,
slots and tokens; nothing of texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition
from workbench.runtime.pinned import Pinned

_ANY = -1  # in a head: a place in front of it
_NEVER = float("-inf")


class Table(NamedTuple):
    """The words of all rows, a line each; columns are [b] int64 on the device."""

    rows: Tensor  # batch row
    slots: Tensor  # line of the row's adjusted logits
    lasts: Tensor  # last token
    sizes: Tensor  # tokens in front of it
    prompts: Tensor  # prompt tokens of the row, which count for nothing
    heads: Tensor  # [b, w]; the tokens in front of the last, at the right


class BadWords:
    """The bad words of the batch's rows."""

    def __init__(self, max_rows: int, pinned: Pinned) -> None:
        self._max_rows = max_rows
        self._pinned = pinned
        self._asking: dict[int, Addition] = {}  # by row
        self._table: Table | None = None  # None: members changed

    def clear(self) -> None:
        """Forget all rows. Asks nothing of the device."""
        self._asking.clear()
        self._table = None

    def leave(self, rows: Sequence[int]) -> None:
        for row in rows:
            if self._asking.pop(row, None) is not None:
                self._table = None

    def enter(self, added: Sequence[Addition]) -> None:
        for addition in added:
            if addition.bad_words:
                self._asking[addition.row] = addition
                self._table = None

    def forbid(
        self, values: Tensor, slot_of: Mapping[int, int], tokens: Tensor, rows: Tensor, lengths: Tensor
    ) -> None:
        """Hold back, in `values`, the last tokens of words whose other tokens have just been generated.

        Before or after every other adjustment: -inf stays what it is.

        Args:
            values: [slots, vocab] float32, written. slot_of: line in `values`, by batch row.
            tokens: [max_rows, max_length] int32; the rows' tokens.
            rows, lengths: [m]; lines that sample now, and the tokens they have.
        """
        if not self._asking:
            return
        if self._table is None:
            self._table = self._build([(row, slot_of[row]) for row in self._asking])
        ends = torch.zeros(self._max_rows, dtype=torch.int64, device=tokens.device)
        ends.index_copy_(0, rows.long(), lengths.long())
        # A row that does not sample now has 0 tokens.
        _forbid(values, self._table, ends[self._table.rows], tokens)

    def forbid_behind(self, values: Tensor, lines: Iterable[tuple[int, int, int]], tokens: Tensor) -> None:
        """The same, of lines that are sampled behind drafts: each one's row, slot, and tokens by then."""
        asking = [(row, slot, length) for row, slot, length in lines if row in self._asking]
        if not asking:
            return
        ends = [length for row, _, length in asking for _ in self._asking[row].bad_words]
        table = self._build([(row, slot) for row, slot, _ in asking])
        _forbid(values, table, self._pinned.upload(np.array(ends, np.int64)), tokens)

    def _build(self, places: Sequence[tuple[int, int]]) -> Table:
        """The words of some rows, each to be held back in a slot."""
        asking = [(self._asking[row], slot) for row, slot in places]
        words = [(addition, slot, word) for addition, slot in asking for word in addition.bad_words]
        width = max(len(word) for _, _, word in words) - 1
        heads = np.full((len(words), width), _ANY, np.int64)
        for line, (_, _, word) in enumerate(words):
            heads[line, width + 1 - len(word) :] = word[:-1]
        columns = np.array(
            [(a.row, slot, word[-1], len(word) - 1, a.num_prompt_tokens) for a, slot, word in words], np.int64
        )
        rows, slots, lasts, sizes, prompts = (self._pinned.upload(column) for column in columns.T)
        return Table(rows, slots, lasts, sizes, prompts, self._pinned.upload(heads))


def _forbid(values: Tensor, table: Table, ends: Tensor, tokens: Tensor) -> None:
    """`ends` [b]; tokens that the row of each word has."""
    width = table.heads.shape[1]
    places = ends[:, None] - width + torch.arange(width, device=tokens.device)
    behind = tokens[table.rows[:, None], places.clamp(min=0)]
    said = ((behind == table.heads) | (table.heads == _ANY)).all(1)
    said &= ends - table.sizes >= table.prompts
    # Adding has no need to know, on the host, how many there are.
    values.index_put_((table.slots, table.lasts), torch.where(said, _NEVER, 0.0), accumulate=True)
