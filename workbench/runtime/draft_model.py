"""A small model that drafts for a large one: what it would say itself, token after token, greedily.

(Leviathan et al. 2023, with a drafter that is certain of its drafts.) It computes in plain torch, with a KV
cache of its own in the blocks of the model's: the first group's block table names both. Behind its last block
a request has scratch blocks, for drafts that may never become tokens. What the model wrote and the drafter
has not computed, of a prompt found in the cache, say, it computes before it drafts, never more in a step than
the engine's own token budget. Knows plans and results; nothing of who decides how much is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.engine.plan import Asks, Growth, Ints, StepPlan, within
from workbench.engine.result import Proposed
from workbench.models.decoder import Decoder
from workbench.models.spec import ModelSpec
from workbench.runtime.attention import PagedAttention
from workbench.runtime.batch import Batch
from workbench.runtime.contexts import Contexts
from workbench.runtime.draft_cache import Filled, Longs
from workbench.runtime.host_tokens import HostTokens
from workbench.runtime.kv_formats import Format
from workbench.runtime.kv_store import KVStore, bytes_per_block, kv_groups
from workbench.runtime.step_drafter import Seen

NOBODY: Ints = np.empty(0, np.int32)

BEHIND = 128  # steps that are followed at once, where nobody asks for drafts


class Size(NamedTuple):
    """What the drafter has to hold."""

    max_rows: int
    max_length: int  # tokens of a request that drafts, at most
    most_tokens: int  # computed at once
    most_drafts: int  # of a request in a step
    num_blocks: int  # of the pool
    block_size: int


class Asked(NamedTuple):
    """Requests that draft."""

    rows: Longs
    lengths: Longs  # tokens of each
    most: Longs  # drafts of each

    def of(self, kept: np.ndarray) -> Asked:
        return Asked(self.rows[kept], self.lengths[kept], self.most[kept])


def draft_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of a drafter's keys and values in one block of the pool."""
    return bytes_per_block(spec, _one_group(spec), block_size, _formats(spec, dtype))


def _one_group(spec: ModelSpec) -> tuple[KVGroup, ...]:
    """A block of every layer: windows or not, they share the table, so that none may share memory."""
    return (KVGroup(tuple(range(spec.num_layers))),)


def _formats(spec: ModelSpec, dtype: torch.dtype) -> list[Format]:
    return [Format("auto", dtype)] * spec.num_layers


class DraftModel:
    """Drafts of each batch row."""

    wants_hidden = False

    def __init__(self, model: Decoder, size: Size, table: int) -> None:
        """`table`: KV group of the engine's whose block table never lets go of a block."""
        spec, self._model, self._size, self._table = model.spec, model, size, table
        self._scratch = -(-size.most_drafts // size.block_size)  # blocks of each row
        num_blocks = size.num_blocks + size.max_rows * self._scratch
        one = _one_group(spec)
        self._store = KVStore(
            spec, one, num_blocks, size.block_size, _formats(spec, model.dtype), model.device
        )
        self._groups = kv_groups(spec)
        longest = size.max_length + size.block_size + size.most_drafts  # room behind the last block
        layouts = self._store.layouts(spec, self._groups)
        self._batch = Batch(size.max_rows, longest, layouts, model.device)
        self._contexts = Contexts(self._store, layouts, spec.num_layers, model.dtype)
        self._places = np.arange(-(-size.max_length // size.block_size) + 1)
        self._filled = Filled(1 + num_blocks, size.block_size)
        self._behind: list[Seen] = []  # steps that nobody has looked at yet
        self._tokens = HostTokens(size.max_rows, longest)

    def reset(self) -> None:
        self._behind.clear()
        self._batch.clear()
        self._filled.forget()

    def draft(self, seen: Seen) -> Proposed | None:
        asks = seen.plan.asks
        self._behind.append(seen)
        if asks is not None:
            return self._draft(seen, asks)
        if len(self._behind) == BEHIND:
            self._catch_up()
        return None

    @torch.inference_mode()
    def _draft(self, seen: Seen, asks: Asks) -> Proposed | None:
        """What the newest step asks for."""
        self._catch_up()
        plan, lines = seen.plan, asks.lines
        asked = Asked(plan.rows[lines].astype(np.int64), seen.lengths[lines], asks.most.astype(np.int64))
        over = seen.over | {row for row, _, _ in seen.forced}
        fits = asked.lengths + asked.most <= self._model.spec.max_position_embeddings
        asked = asked.of(fits & ~np.isin(asked.rows, list(over)))
        return self._propose(asked) if len(asked.rows) else None

    def _catch_up(self) -> None:
        """Follow the steps that are behind, many plain ones at once."""
        behind, self._behind = self._behind, []
        plain: list[Seen] = []
        for seen in behind:
            if seen.plan.added or seen.plan.drafts is not None or seen.forced:
                self._follow(plain)
                self._follow([seen])
                plain = []
            else:
                plain.append(seen)
        self._follow(plain)

    def _follow(self, steps: list[Seen]) -> None:
        """Bring rows, tables and tokens up to date with steps: one, or several that are plain.

        In a plain one nobody enters, brings drafts or is forced to anything.
        """
        if not steps:
            return
        plans, groups = [seen.plan for seen in steps], len(self._groups)
        for added in plans[0].added:
            self._batch.enter(added.row, (added.blocks[self._table],) * groups)
        grown = [plan.grown[self._table] for plan in plans]
        self._batch.grow((Growth(*map(np.concatenate, zip(*grown, strict=True))),) * groups)
        self._tokens.follow(steps)
        rows = np.concatenate([plan.rows for plan in plans])
        begins = np.concatenate([plan.starts for plan in plans])
        starts, ends = np.zeros((2, self._size.max_rows), np.int64)
        starts[rows[::-1]] = begins[::-1]  # of several steps of a row the first one begins; the last one ends
        ends[rows] = begins + np.concatenate([plan.counts for plan in plans])
        rows = ends.nonzero()[0]
        self._filled.overwritten(self._tables(rows), starts[rows], ends[rows])

    def _tables(self, rows: Longs) -> Longs:
        return self._batch.blocks_at(rows[:, None], self._places)

    def _propose(self, asked: Asked) -> Proposed | None:
        """Catch up, then draft."""
        self._tokens.send(self._batch, asked.rows, asked.lengths)
        written = asked.lengths - 1  # the model computed these; the token sampled last has no block yet
        self._lend(asked.rows, written, asked.most)
        tables = self._tables(asked.rows)
        starts = self._filled.reached(tables, written)
        behind = asked.lengths - starts
        before = np.cumsum(behind) - behind
        counts = np.clip(self._size.most_tokens - before, 0, behind)
        part = counts > 0
        ready = counts == behind
        first = self._next(asked.rows[part], starts[part], counts[part], ready[part])
        # What lies behind what the model wrote is in scratch, where nobody finds it again.
        self._filled.computed(tables, starts, np.minimum(starts + counts, written))
        return self._go_on(asked.of(ready), first) if first is not None else None

    def _lend(self, rows: Longs, written: Longs, most: Longs) -> None:
        """Scratch blocks in the tables' places behind what the model wrote; its next blocks replace them."""
        held = -(-written // self._size.block_size)
        count = (written + most - 1) // self._size.block_size + 1 - held
        offset = within(count.astype(np.int32))
        blocks = 1 + self._size.num_blocks + rows.repeat(count) * self._scratch + offset
        places = held.repeat(count) + offset
        growth = Growth(rows.repeat(count).astype(np.int32), places.astype(np.int32), blocks.astype(np.int32))
        self._batch.grow((growth,) * len(self._groups))

    def _go_on(self, asked: Asked, first: Tensor) -> Proposed:
        """`first` [a]: the first draft of each."""
        rows, lengths, most = asked
        drafts, newest = [first], first
        for number in range(1, int(most.max())):
            more = most > number
            on_device = torch.from_numpy(more[most > number - 1]).to(first.device)
            places = lengths[more] + number - 1
            self._batch.append(rows[more], places, newest[on_device])
            ones = np.ones(len(places), np.int64)
            found = self._next(rows[more], places, ones, ones.astype(bool))
            assert found is not None, "everybody asks for the next token"
            newest = found
            spread = torch.zeros_like(first)
            spread[torch.from_numpy(more).to(first.device)] = newest
            drafts.append(spread)
        columns = torch.stack(drafts, 1).cpu().numpy().astype(np.int32)
        kept = np.arange(columns.shape[1]) < most[:, None]
        return Proposed(rows.astype(np.int32), lengths.astype(np.int32), most.astype(np.int32), columns[kept])

    def _next(self, rows: Longs, starts: Longs, counts: Longs, samples: np.ndarray) -> Tensor | None:
        """[samples.sum()] int64, device; the likeliest token behind tokens [starts, starts + counts)."""
        model, batch_rows = self._model, rows.astype(np.int32)
        plan = StepPlan(
            0, 0, batch_rows, starts.astype(np.int32), counts.astype(np.int32), samples, NOBODY, (), ()
        )
        inputs = self._batch.inputs(plan)
        cos_sin = model.rotary.at(inputs.positions)
        self._contexts.begin(inputs)
        attention = PagedAttention(model.spec, self._groups, self._store, self._contexts, inputs, cos_sin)
        hidden = model.forward(inputs.token_ids, inputs.positions, attention, wanted=inputs.last)
        return model.logits(hidden).argmax(-1) if len(hidden) else None


def unbounded(groups: Sequence[KVGroup]) -> int | None:
    """The KV group whose tables keep every block; None: all slide."""
    return next((index for index, group in enumerate(groups) if group.window is None), None)
