"""Changes that rows ask of their logits, kept on the device: masks, bias, penalties, stops held back.

A row that asks gets a slot: a line of adjusted logits, of counts where it has penalties, of offsets where it
has a bias or allowed ids. Rows that ask for nothing cost nothing. What is sampled behind a row's drafts has a
slot each for as long as the step takes, in which those drafts count as drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition, Ints, StepPlan
from workbench.engine.running import Longs
from workbench.kernels.sample.adjust import adjust, count, start_counts
from workbench.kernels.sample.reference import Adjusted, Adjustments
from workbench.kernels.token_mask.kernel import mask_tokens
from workbench.params import SamplingParams
from workbench.runtime.bad_words import BadWords
from workbench.runtime.pinned import Pinned
from workbench.runtime.sampler import is_adjusted

NEVER = float("-inf")
_NONE = -1


class Behind(NamedTuple):
    """What is sampled behind one or more drafts of a row."""

    line: int  # of all that a step samples
    row: int
    length: int  # tokens that it is sampled behind
    drafts: list[int]  # of them, those at their end


class Adjuster:
    """The adjustments of the batch's rows."""

    def __init__(self, max_rows: int, vocab: int, pinned: Pinned) -> None:
        self._device = device = pinned.device
        self._upload = pinned.upload
        self._ints = torch.full((4, max_rows), _NONE, dtype=torch.int32, device=device)  # slots, stops_until
        self._floats = torch.zeros((3, max_rows), device=device)  # repetition, frequency, presence
        self._stops = torch.full((max_rows, 1), _NONE, dtype=torch.int32, device=device)
        self._values = torch.empty((0, vocab), device=device)
        self._offsets = torch.empty((0, vocab), device=device)
        self._counts = torch.empty((0, vocab), dtype=torch.int32, device=device)
        self._slot_of: dict[int, int] = {}  # by row
        self._free: list[int] = []
        self._bad_words = BadWords(max_rows, pinned)
        self._prompts: dict[int, int] = {}  # of the rows that count tokens: those of their prompts
        self._recount: set[int] = set()  # of them, those whose drafts may have counted in vain
        self._behind: dict[int, int] = {}  # slots of the step's lines behind drafts
        self._stale = False  # the device still gives slots to rows that were forgotten

    def clear(self) -> None:
        """Forget all rows. Asks nothing of the device, which may have failed."""
        self._free += self._slot_of.values()
        self._slot_of.clear()
        self._prompts.clear()
        self._recount.clear()
        self._bad_words.clear()
        self._stale = True

    def leave(self, rows: Sequence[int]) -> None:
        """Rows give their slots back."""
        leaving = [row for row in rows if row in self._slot_of]
        self._free += [self._slot_of.pop(row) for row in leaving]
        self._recount.difference_update(leaving)
        for row in leaving:
            self._prompts.pop(row, None)
        if leaving:
            self._bad_words.leave(leaving)
            self._ints[:, self._longs(leaving)] = _NONE

    def enter(self, added: Sequence[Addition], tokens: Tensor) -> None:
        """Requests that enter, with their tokens in `tokens` [max_rows, max_length] already."""
        asking = [addition for addition in added if is_adjusted(addition.params)]
        if not asking:
            return
        if self._stale:
            self._ints.fill_(_NONE)
            self._stale = False
        self._make_room(len(asking))
        for addition in asking:
            self._slot_of[addition.row] = self._free.pop()
            self._write_offsets(addition)
        rows = self._longs([addition.row for addition in asking])
        ints = np.array([self._ints_of(addition) for addition in asking], np.int32)
        penalties = np.array([_penalties(addition.params) for addition in asking], np.float32)
        self._ints[:, rows] = self._upload(ints).T
        self._floats[:, rows] = self._upload(penalties).T
        self._write_stops(asking, rows)
        self._bad_words.enter(asking)
        counting = [addition for addition in asking if _counts_tokens(addition.params)]
        self._prompts |= {addition.row: addition.num_prompt_tokens for addition in counting}
        self._start_counts({addition.row: len(addition.token_ids) for addition in counting}, tokens)

    def _longs(self, numbers: Iterable[int]) -> Tensor:
        return self._upload(np.array([*numbers], np.int64))

    def _shorts(self, numbers: Iterable[int]) -> Tensor:
        return self._upload(np.array([*numbers], np.int32))

    def _make_room(self, wanted: int) -> None:
        lacking, slots = wanted - len(self._free), len(self._values)
        if lacking <= 0:
            return
        more = max(lacking, slots)
        self._values, self._offsets, self._counts = (
            torch.cat((table, torch.zeros((more, table.shape[1]), dtype=table.dtype, device=self._device)))
            for table in (self._values, self._offsets, self._counts)
        )
        self._free += range(slots + more - 1, slots - 1, -1)

    def _ints_of(self, addition: Addition) -> tuple[int, int, int, int]:
        params, slot = addition.params, self._slot_of[addition.row]
        return (
            slot,
            slot if _counts_tokens(params) else _NONE,
            slot if _has_offsets(params) else _NONE,
            addition.num_prompt_tokens + params.min_tokens,
        )

    def _write_offsets(self, addition: Addition) -> None:
        params = addition.params
        if not _has_offsets(params):
            return
        line = self._offsets[self._slot_of[addition.row]]
        if params.allowed_token_ids is None:
            line.zero_()
        else:
            line.fill_(NEVER)
            line[self._longs(params.allowed_token_ids)] = 0.0
        if params.logit_bias:
            biases = np.array([*params.logit_bias.values()], np.float32)
            line[self._longs(params.logit_bias)] += self._upload(biases)

    def _write_stops(self, asking: Sequence[Addition], rows: Tensor) -> None:
        stops = [
            [*addition.eos_token_ids, *(addition.params.stop_token_ids or ())]
            if addition.params.min_tokens
            else []
            for addition in asking
        ]
        width = max(map(len, stops))
        if width > self._stops.shape[1]:
            wider = self._stops.new_full((len(self._stops), width), _NONE)
            wider[:, : self._stops.shape[1]] = self._stops
            self._stops = wider
        padded = [line + [_NONE] * (self._stops.shape[1] - len(line)) for line in stops]
        self._stops[rows] = self._upload(np.array(padded, np.int32))

    def _start_counts(self, lengths_of: Mapping[int, int], tokens: Tensor) -> None:
        """Count afresh; the tokens that rows have, by row."""
        if not lengths_of:
            return
        columns = [
            (self._slot_of[row], row, self._prompts[row], length) for row, length in lengths_of.items()
        ]
        slots, rows, prompts, lengths = self._upload(np.array(columns, np.int32).T)
        start_counts(self._counts, slots, tokens, rows, prompts, lengths)

    def adjust(
        self, logits: Tensor, rows: Tensor, lengths: Tensor, tokens: Tensor, plan: StepPlan
    ) -> Adjusted:
        """The adjusted logits of those of the lines [m] that ask; `rows` [m] int32 are the lines' rows.

        `tokens` [max_rows, max_length] int32 are those the rows have, and behind them their drafts.
        """
        self._behind = {}
        self._count_what_stands(plan, tokens)
        ints, floats = self._ints.index_select(1, rows), self._floats.index_select(1, rows)
        heads = len(rows) - plan.num_drafts
        behind = [each for each in _behind_drafts(plan, heads) if each.row in self._slot_of]
        if behind:
            self._give_slots(behind, ints)
        stops = self._stops.index_select(0, rows)
        columns = Adjustments(
            ints[0], ints[1], ints[2], self._counts, self._offsets, *floats.unbind(0), stops, ints[3]
        )
        adjusted = adjust(logits, lengths, columns, self._values)
        self._bad_words.forbid(self._values, self._slot_of, tokens, rows[:heads], lengths[:heads])
        lines = [(each.row, self._behind[each.line], each.length) for each in behind]
        self._bad_words.forbid_behind(self._values, lines, tokens)
        return adjusted

    def _count_what_stands(self, plan: StepPlan, tokens: Tensor) -> None:
        """Of rows whose drafts were verified it is known now what stands; no step of theirs is in flight."""
        if not self._recount:
            return
        rows, positions, _ = plan.yields
        # Of a row's lines the first one stands behind no draft.
        known = dict(zip(rows[::-1].tolist(), positions[::-1].tolist(), strict=True))
        self._start_counts({row: known[row] for row in self._recount & known.keys()}, tokens)
        self._recount -= known.keys()

    def _give_slots(self, behind: Sequence[Behind], ints: Tensor) -> None:
        """To lines behind drafts, for this step; they come to `ints` [4, m].

        ::

            a row's line    counts of the row
            behind draft 1  counts of the row, draft 1
            behind draft 2  counts of the row, draft 1, draft 2
        """
        self._make_room(len(behind))
        slots = self._free[-len(behind) :]  # which they stay: the next step may have them
        self._behind = {each.line: slot for each, slot in zip(behind, slots, strict=True)}
        ints[0].index_copy_(0, self._longs(each.line for each in behind), self._shorts(slots))
        counting = [each for each in behind if each.row in self._prompts]
        if not counting:
            return
        slots = [self._behind[each.line] for each in counting]
        ints[1].index_copy_(0, self._longs(each.line for each in counting), self._shorts(slots))
        own = self._counts.index_select(0, self._longs(self._slot_of[each.row] for each in counting))
        self._counts.index_copy_(0, self._longs(slots), own)
        drafted = [
            (slot, token_id) for slot, each in zip(slots, counting, strict=True) for token_id in each.drafts
        ]
        drafted_slots, ids = zip(*drafted, strict=True)
        count(self._counts, self._shorts(drafted_slots), self._longs(ids))
        self._recount.update(each.row for each in counting)

    def mask(self, lines: Longs, rows: Longs, bits: Ints) -> None:
        """Forbid tokens in the adjusted logits of some lines [k] of batch rows, as bits [k, words] say."""
        places = zip(lines.tolist(), rows.tolist(), strict=True)
        slots = self._longs(self._behind.get(line, self._slot_of[row]) for line, row in places)
        mask_tokens(self._values, slots, self._upload(bits))

    def count(self, rows: Tensor, ids: Tensor) -> None:
        """Tokens [m] were drawn for the lines' rows."""
        count(self._counts, self._ints[1].index_select(0, rows), ids)


def _counts_tokens(p: SamplingParams) -> bool:
    return p.repetition_penalty != 1 or bool(p.frequency_penalty) or bool(p.presence_penalty)


def _has_offsets(p: SamplingParams) -> bool:
    return bool(p.logit_bias) or p.allowed_token_ids is not None


def _penalties(p: SamplingParams) -> tuple[float, float, float]:
    return p.repetition_penalty, p.frequency_penalty, p.presence_penalty


def _behind_drafts(plan: StepPlan, heads: int) -> list[Behind]:
    """Of a step in which so many tokens are sampled behind none."""
    if plan.drafts is None:
        return []
    rows, positions, _ = plan.yields
    found, begin, token_ids = list[Behind](), 0, plan.drafts.token_ids.tolist()
    for drafted in plan.drafts.counts.tolist():
        for end in range(begin + 1, begin + drafted + 1):
            line = heads + end - 1
            found.append(Behind(line, int(rows[line]), int(positions[line]), token_ids[begin:end]))
        begin += drafted
    return found
