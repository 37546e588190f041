"""A step by the project's kernels, in two halves: from the packed array to logits, from logits to tokens.

Each half reads only memory whose place never changes, so that it may run now or be captured as a graph.
Grammar masks and the like may change the logits in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.engine.plan import StepPlan
from workbench.kernels.attention.kernel import Ragged, make_space
from workbench.kernels.logprobs.kernel import logprobs
from workbench.kernels.sample.adjust import shape_rows
from workbench.kernels.sample.kernel import make_workspace, sample
from workbench.kernels.sample.reference import Adjusted, Options
from workbench.kernels.step_inputs.kernel import append, apply_growth, lay_out
from workbench.models.adapted import AdaptedOperations
from workbench.models.decoder import Decoder
from workbench.models.products import product_into
from workbench.runtime.constraints import Constrained
from workbench.runtime.device_batch import DeviceBatch
from workbench.runtime.kernel_adapters import KernelAdapters
from workbench.runtime.kernel_attention import Bounds, Flat, KernelAttention
from workbench.runtime.kv_store import KVStore
from workbench.runtime.logprobs import EACH, Columns, Wanted, read
from workbench.runtime.scoring import PromptColumns, Scored, score
from workbench.runtime.step_arrays import IN_ORDER, StepArrays, views
from workbench.runtime.whole_prompts import can_attend_whole


class Drawn(NamedTuple):
    """What tokens were drawn by."""

    options: Options
    adjusted: Adjusted | None


class KernelStep:
    """What a step runs, and the memory all steps share."""

    def __init__(
        self,
        model: Decoder,
        groups: Sequence[KVGroup],
        store: KVStore,
        batch: DeviceBatch,
        packed: Tensor,
        max_tokens: int,
        max_lines: int,
        adapters: KernelAdapters | None = None,
        drafts: bool = False,
        shown: bool = False,
    ) -> None:
        """`packed`: the device's packed array. `max_tokens`, `max_lines`: a step computes and samples.

        `drafts`: steps may bring some; `shown`: somebody looks at the hidden states of all tokens.
        """
        self._drafts = drafts
        self._adapters = adapters
        self._behind: AdaptedOperations | None = None  # of the rows whose hidden states the last step gave
        spec, rows = model.spec, max_lines
        self._model = model
        self._groups = groups
        self._store = store
        self._batch = batch
        self._packed = packed

        def longs(count: int) -> Tensor:
            return torch.zeros(count, dtype=torch.int64, device=batch.device)

        self._token_ids = longs(max_tokens)
        self._positions = longs(max_tokens)
        self._slots = tuple(longs(max_tokens) for _ in groups)
        self._space = make_space(
            rows, max_tokens, spec.num_heads, spec.num_kv_heads, spec.head_dim, batch.device
        )
        self._workspace = make_workspace(rows, spec.vocab_size, batch.device)
        self.logits = torch.zeros((rows, spec.vocab_size), dtype=model.dtype, device=batch.device)
        self.token_ids = longs(rows)  # what the sampling lines drew
        # [max_tokens, hidden] of the step computed last; graphs give their own memory to one another.
        self.hidden = None
        if shown:
            self.hidden = torch.zeros((max_tokens, spec.hidden_size), dtype=model.dtype, device=batch.device)
        self.attends_whole = can_attend_whole(spec, model.dtype, batch.device)

    def arrays(self, lines: int) -> StepArrays:
        """The packed array's fields for a step of so many lines."""
        return views(self._packed, lines, len(self._groups))

    def forward(
        self,
        lines: int,
        tokens: int,
        sampling: int,
        bounds: Bounds,
        sharing: bool,
        scored: Tensor | None = None,
        adapted: AdaptedOperations | None = None,
    ) -> Tensor:
        """Compute the packed step's tokens; the logits of its first `sampling` lines are in `logits`.

        Args:
            lines: the packed array's lines.
            tokens: places for tokens, at least as many as the lines have.
            sampling: lines that yield a token; 0: none.
            bounds: of every batch this is run for.
            sharing: whether a shared prefix is looked at; else the one in the array counts for nothing.
            scored: [t] int64; more of the step's tokens whose hidden states are asked for.
            adapted: what computes tokens with adapters; None: nobody has one.

        Returns:
            [t, hidden] of the tokens scored; none where there are none.
        """
        batch, arrays = self._batch, self.arrays(lines)
        self._bring(arrays, self._drafts and bounds.count > 1)
        flat = Flat(
            self._token_ids[:tokens], self._positions[:tokens], tuple(slots[:tokens] for slots in self._slots)
        )
        lay_out(
            arrays.rows,
            arrays.starts,
            arrays.begins,
            batch.tokens,
            batch.tables,
            batch.block_size,
            *flat,
        )
        shared = arrays.shared if sharing else None
        ragged = [Ragged(arrays.rows, arrays.starts, arrays.begins, table, shared) for table in batch.tables]
        attention = KernelAttention(self._model, self._groups, self._store, flat, ragged, bounds, self._space)
        every = bounds.count == 1 and sampling == tokens <= IN_ORDER
        wanted = None if every else arrays.last[: max(1, sampling)]
        if scored is not None:
            wanted = torch.cat((arrays.last[:sampling], scored))
        hidden = self._compute(flat, attention, wanted, adapted)
        self._store.scales_due = False
        if adapted is not None and wanted is not None:
            adapted = adapted.of(wanted)
        if sampling:
            head, logits = self._model.lm_head, self.logits[:sampling]
            product_into(hidden[:sampling], head.weight, head.bias, logits)
            if adapted is not None:
                of_sampling = adapted if scored is None else adapted.part(0, sampling)
                of_sampling.add(head, hidden[:sampling], logits)
        self._behind = None if scored is None or adapted is None else adapted.part(sampling, len(hidden))
        return hidden[sampling:]

    def _compute(
        self, flat: Flat, attention: KernelAttention, wanted: Tensor | None, adapted: AdaptedOperations | None
    ) -> Tensor:
        """Hidden states of the tokens `wanted`, None: of all; where somebody looks at them, all are kept."""
        asked = wanted if self.hidden is None else None
        hidden = self._model.forward(
            flat.token_ids, flat.positions, attention, wanted=asked, operations=adapted
        )
        if self.hidden is None:
            return hidden
        self.hidden[: len(hidden)].copy_(hidden)
        return hidden if wanted is None else hidden.index_select(0, wanted)

    def _bring(self, arrays: StepArrays, drafts: bool) -> None:
        """Into the batch, what the step brings for rows that are in it."""
        apply_growth(self._batch.tables, *arrays.grown.unbind(0))
        if drafts:
            append(self._batch.tokens, *arrays.drafted.unbind(0))

    def forward_adapted(self, lines: int, bounds: Bounds, changes: int) -> Tensor:
        """A step of decodes whose adapters have been sent; `changes`: what they may change."""
        assert self._adapters is not None, "the engine has no adapters"
        adapted = self._adapters.operations(self._adapters.additions(lines, changes))
        return self.forward(lines, lines, lines, bounds, False, None, adapted)

    @property
    def finds_scales(self) -> bool:
        """Whether the next forward pass has to be run anew, and not replayed: it finds the cache's scales."""
        return self._store.scales_due

    def score(self, hidden: Tensor, scored: Scored, as_logits: bool) -> PromptColumns:
        """Logprobs of the prompt tokens that `hidden` [t, hidden] predict."""
        chosen, model, adapted = self._batch.pinned.upload(scored.token_ids), self._model, self._behind

        def logits(part: Tensor, begin: int) -> Tensor:
            return model.logits(part, adapted and adapted.part(begin, begin + len(part)))

        return score(hidden, scored, chosen, logits, logprobs, model.spec.vocab_size, as_logits=as_logits)

    def draw(
        self,
        lines: int,
        sampling: int,
        adjusting: StepPlan | None = None,
        constrained: Constrained | None = None,
    ) -> Drawn:
        """A token for each of the first `sampling` lines from `logits`, to `token_ids` and into the batch.

        `adjusting`: a plan some of whose rows ask for changes in their logits; `constrained`: by a mask.
        """
        arrays, batch = self.arrays(lines), self._batch
        lengths, rows = arrays.lengths[:sampling], arrays.option_rows[:sampling]
        options, logits = batch.options(rows, lengths), self.logits[:sampling]
        adjusted = None
        if adjusting is not None:
            adjusted = batch.adjuster.adjust(logits, rows, lengths, batch.tokens, adjusting)
        if constrained is not None:
            batch.adjuster.mask(constrained.lines, constrained.rows, constrained.bits)
        ids = sample(
            logits,
            options,
            adjusted=adjusted,
            workspace=self._workspace,
            out=self.token_ids[:sampling],
        )
        append(batch.tokens, arrays.token_rows[:sampling], lengths, ids)
        if adjusting is not None:
            batch.adjuster.count(rows, ids)
        return Drawn(options, adjusted)

    def warm_mask(self, rows: Sequence[int]) -> None:
        """Forbid nothing in the adjusted logits of some batch rows: masks are nothing that plans bring."""
        if rows:
            bits = np.full((len(rows), -(-self._model.spec.vocab_size // 32)), -1, np.int32)
            places = np.array(rows, np.int64)
            self._batch.adjuster.mask(places, places, bits)

    def take(self, lines: int, ids: Tensor) -> None:
        """Tokens [sampling] that somebody else drew, as if they had been drawn here."""
        arrays, sampling = self.arrays(lines), len(ids)
        self.token_ids[:sampling].copy_(ids)
        append(self._batch.tokens, arrays.token_rows[:sampling], arrays.lengths[:sampling], ids)

    def raw_logprobs(self, sampling: int, wanted: Wanted, as_logits: bool) -> Columns:
        """Of the tokens just drawn, from the model's own logits."""
        return read(self.logits[:sampling], self.token_ids[:sampling], wanted, logprobs, as_logits=as_logits)

    def processed_logprobs(self, drawn: Drawn, sampling: int, wanted: Wanted, as_logits: bool) -> Columns:
        """Of the tokens drawn, from the distribution they were drawn from; for the lines that ask alone."""
        lines = self._batch.pinned.upload(wanted.lines)
        bounds = self._workspace.bounds
        shaped = shape_rows(self.logits[:sampling], drawn.options, lines, bounds, adjusted=drawn.adjusted)
        chosen = self.token_ids[:sampling][lines]
        found = read(shaped, chosen, wanted.among(wanted.lines), logprobs, as_logits=as_logits)

        def spread(column: Tensor) -> Tensor:
            return column.new_zeros((sampling, *column.shape[1:])).index_copy_(0, lines, column)

        return Columns(*map(spread, found[:EACH]), *found[EACH:])
