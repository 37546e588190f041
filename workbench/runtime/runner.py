"""Computes plans with a model, in plain torch. Knows rows and plans; nothing of requests or schedules."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.cache.manager import KVGroup
from workbench.engine.clock import Clock
from workbench.engine.plan import Ints, StepPlan, within
from workbench.engine.result import Scores, StepResult
from workbench.kernels.logprobs.reference import logprobs as logprobs_of
from workbench.models.adapted import AdaptedOperations
from workbench.models.decoder import Decoder
from workbench.runtime.attention import PagedAttention
from workbench.runtime.batch import Batch
from workbench.runtime.constraints import Constrained, Constraints, outcome
from workbench.runtime.contexts import Contexts
from workbench.runtime.device import naming_faults
from workbench.runtime.kv_store import KVStore
from workbench.runtime.logprobs import to_columns
from workbench.runtime.sampler import Sampled, Sampler
from workbench.runtime.scoring import Scored, score, scored_by, to_scores
from workbench.runtime.step_drafter import StepDrafter, drafted_behind
from workbench.runtime.torch_adapters import TorchAdapters


class Ticket(NamedTuple):
    """A step that was launched; its tokens are on the device."""

    plan: StepPlan
    sampled: Sampled
    scores: tuple[Scores, ...]
    launch_s: float
    device_s: float
    constrained: Constrained | None
    hidden: Tensor | None  # [T, hidden] in the plan's order; None: no drafter asked for them


class TorchRunner:
    """One model, one KV store, one batch. On a CPU a launch computes the step; on a GPU it queues it."""

    def __init__(
        self,
        model: Decoder,
        groups: tuple[KVGroup, ...],
        store: KVStore,
        batch: Batch,
        sampler: Sampler,
        constraints: Constraints,
        clock: Clock,
        adapters: TorchAdapters | None = None,
        drafter: StepDrafter | None = None,
    ) -> None:
        """`adapters`: None in an engine without any. `drafter`: drafts in the step; None: nobody does."""
        self.drafter = drafter
        self._adapters = adapters
        self._model = model
        self._groups = groups
        self._store = store
        self._batch = batch
        self._sampler = sampler
        self._constraints = constraints
        self._clock = clock
        self._last: Ticket | None = None  # of the step launched last
        self._contexts = Contexts(
            store, store.layouts(model.spec, groups), model.spec.num_layers, model.dtype
        )

    @naming_faults
    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Ticket:
        """Run a plan's tokens through the model and sample; the new tokens stay in the batch."""
        began = self._clock()
        self._batch.apply(plan)
        self._constraints.apply(plan)
        inputs = self._batch.inputs(plan)
        adapted = None
        if self._adapters is not None:
            self._adapters.apply(plan)
            adapted = self._adapters.operations(plan, inputs.begins)
        cos_sin = self._model.rotary.at(inputs.positions)
        self._contexts.begin(inputs)
        attention = PagedAttention(
            self._model.spec, self._groups, self._store, self._contexts, inputs, cos_sin
        )
        scored, wanted, count = (
            scored_by(plan, inputs.begins, self._batch.additions),
            inputs.last,
            len(inputs.rows),
        )
        if scored is not None:
            wanted = torch.cat((wanted, torch.from_numpy(scored.places).to(wanted.device)))
        shown = self.drafter is not None and self.drafter.wants_hidden
        hidden = self._model.forward(
            inputs.token_ids,
            inputs.positions,
            attention,
            wanted=None if shown else wanted,
            operations=adapted,
        )
        in_order = _in_order(hidden, plan, inputs.begins) if shown else None
        hidden = hidden[wanted] if shown else hidden
        adapted = None if adapted is None else adapted.of(wanted)
        self._store.scales_due = False
        self._take_last()
        constrained = self._constraints.masks(plan)
        logits = self._model.logits(hidden[:count], adapted and adapted.part(0, count)) if count else None
        sampled = self._sample(logits, inputs.rows, inputs.lengths, plan.logprobs, constrained)
        if constrained is not None:
            self._batch.follow(constrained.forced)
        behind = adapted and adapted.part(count, len(hidden))
        scores = () if scored is None else self._score(hidden[count:], scored, behind)
        ended = self._clock()
        self._last = Ticket(plan, sampled, scores, began, ended - began, constrained, in_order)
        return self._last

    def _take_last(self) -> None:
        """What the step before drew under a constraint, for the next mask."""
        if self._last is not None and self._last.constrained is not None:
            sampled = self._last.sampled
            self._last.constrained.take(_on_host(sampled.token_ids), sampled.lost)

    def _score(self, hidden: Tensor, scored: Scored, adapted: AdaptedOperations | None) -> tuple[Scores, ...]:
        """`hidden` [t, hidden]: of what predicts the prompt tokens that are told of."""
        model, as_logits = self._model, self._sampler.mode.endswith("logits")

        def logits(part: Tensor, begin: int) -> Tensor:
            return model.logits(part, adapted and adapted.part(begin, begin + len(part)))

        chosen = torch.from_numpy(scored.token_ids).to(hidden.device)
        scoring = score(
            hidden, scored, chosen, logits, logprobs_of, model.spec.vocab_size, as_logits=as_logits
        )
        return to_scores(scoring, scored)

    def _sample(
        self,
        logits: Tensor | None,
        rows: np.ndarray,
        lengths: np.ndarray,
        logprobs: int,
        constrained: Constrained | None,
    ) -> Sampled:
        """`logits` [m + e, vocab]: for each token sampled for `rows` [m + e]; None: there are none."""
        if logits is None:
            return Sampled(torch.empty(0, dtype=torch.int64))
        sampled = self._sampler.sample(
            logits, rows, lengths, self._batch.additions, self._batch.tokens, logprobs, constrained
        )
        self._batch.append(rows, lengths, sampled.token_ids)
        return sampled

    @naming_faults
    def collect(self, ticket: Ticket) -> StepResult:
        """Bring a step's tokens to the host."""
        token_ids = _on_host(ticket.sampled.token_ids)
        columns, wanted = ticket.sampled.logprobs, ticket.sampled.wanted
        logprobs = None if columns is None or wanted is None else to_columns(columns, wanted)
        plan, sampled = ticket.plan, ticket.sampled
        refused, masked, forced, accepted = outcome(plan, ticket.constrained, token_ids, sampled.lost)
        now = self._clock()
        result = StepResult(
            plan.index, plan.rows[plan.samples], token_ids, logprobs, ticket.launch_s, now, ticket.device_s,
            ticket.scores, (*sampled.failed, *refused), masked, forced, accepted,
        )  # fmt: skip
        if self.drafter is None:
            return result
        return drafted_behind(self.drafter, plan, result, ticket.hidden, self._clock)

    def reset(self) -> None:
        """Forget the batch. What the cache holds stays, as far as the scheduler still trusts it."""
        self._batch.clear()
        self._constraints.clear()
        if self._adapters is not None:
            self._adapters.clear()
        if self.drafter is not None:
            self.drafter.reset()
        self._last = None


def _in_order(hidden: Tensor, plan: StepPlan, begins: np.ndarray) -> Tensor:
    """Hidden states [T, hidden] of the layout in the order of the plan."""
    places = begins.repeat(plan.counts) + within(plan.counts)
    return hidden[torch.from_numpy(places).to(hidden.device)]


def _on_host(token_ids: Tensor) -> Ints:
    ids: Ints = token_ids.to(torch.int32).cpu().numpy()
    return ids
