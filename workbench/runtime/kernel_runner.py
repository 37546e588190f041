"""Computes plans on a GPU by the project's kernels: small steps by graph, everything else launch by launch.

A launch queues a step and returns; its tokens stay on the device, where the next step finds them, and travel
to the host by themselves. Knows rows and plans; nothing of requests or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.clock import Clock
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.result import Failure, Scores, StepResult
from workbench.runtime.constraints import Constrained, Constraints, outcome
from workbench.runtime.device import naming_faults
from workbench.runtime.device_batch import DeviceBatch
from workbench.runtime.graphs import Form, Replay, StepGraphs
from workbench.runtime.kernel_adapters import KernelAdapters
from workbench.runtime.kernel_attention import bounds_of
from workbench.runtime.kernel_step import KernelStep
from workbench.runtime.logprobs import Columns, Wanted, to_columns, wanted_by
from workbench.runtime.sampler import LogprobsMode, Sampler, is_adjusted
from workbench.runtime.scoring import PromptColumns, Scored, scored_by, to_scores
from workbench.runtime.step_arrays import IN_ORDER, Order, Staging, fits, longest_last
from workbench.runtime.step_drafter import StepDrafter, drafted_behind

IN_FLIGHT = 4  # steps whose memory on the host is kept apart


class Moment:
    """A point in the order of the device's work: an event on a GPU, the clock elsewhere."""

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            # Where no device is named, torch looks first which kind of device there is, for every record.
            self._index = torch.cuda.current_device() if device.index is None else device.index
        self._clock = clock
        self._at = 0.0

    def record(self) -> None:
        if self._event is None:
            self._at = self._clock()
        else:
            self._event.record(torch.cuda.current_stream(self._index))

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def since(self, other: Moment) -> float:
        """Seconds between the two on the device."""
        if self._event is None or other._event is None:
            return self._at - other._at
        return float(other._event.elapsed_time(self._event)) / 1e3


class Told(NamedTuple):
    """What a step yields beside tokens: logprobs, and what they are; who failed. None: nobody wants any."""

    columns: Columns | None = None
    wanted: Wanted | None = None
    scoring: PromptColumns | None = None
    scored: Scored | None = None
    failed: tuple[Failure, ...] = ()  # rows whose tokens count for nothing
    constrained: Constrained | None = None  # rows whose tokens a grammar has to accept
    lost: Ints | None = None  # lines that could not be sampled

    def moved(self, move: Callable[[Tensor], Tensor]) -> Told:
        """The same, with every tensor somewhere else."""
        columns = None if self.columns is None else Columns(*map(move, self.columns))
        scoring = None if self.scoring is None else self.scoring.moved(move)
        return self._replace(columns=columns, scoring=scoring)


NOTHING = Told()


class KernelTicket(NamedTuple):
    """A step that was launched."""

    plan: StepPlan
    token_ids: Tensor  # [m] int64, host; good once `done` has happened
    told: Told  # on the host; good then too
    launch_s: float
    begun: Moment
    done: Moment
    hidden: Tensor | None  # [T, hidden] of the plan's tokens, device; None: nobody looks at them


class KernelRunner:
    """One model, one KV store, one batch on the device."""

    def __init__(
        self,
        step: KernelStep,
        batch: DeviceBatch,
        staging: Staging,
        mode: LogprobsMode,
        graphs: StepGraphs,
        constraints: Constraints,
        clock: Clock,
        sampler: Sampler | None = None,
        adapters: KernelAdapters | None = None,
        drafter: StepDrafter | None = None,
    ) -> None:
        """`sampler`: draws in place of the kernels, with logits processors; None: there are none.

        `drafter`: drafts in the step; None: nobody does.
        """
        self.drafter = drafter
        self._adapters = adapters
        self._sampler = sampler
        self._step = step
        self._batch = batch
        self._staging = staging
        self._mode = mode
        self._graphs = graphs
        self._constraints = constraints
        self._clock = clock
        device = batch.device
        self._ordered: Ints | None = None  # the rows that `_order` is of
        self._order = Order(np.empty(0, np.int64), np.empty(0, np.int64))
        self._last: KernelTicket | None = None  # of the step launched last
        self._moments = [(Moment(device, clock), Moment(device, clock)) for _ in range(IN_FLIGHT)]

    @naming_faults
    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> KernelTicket:
        """Queue a plan's computation."""
        began, turn = self._clock(), plan.index % IN_FLIGHT
        begun, done = self._moments[turn]
        begun.record()
        pinned = self._batch.pinned
        pinned.begin(turn)
        self._batch.apply(plan)
        self._constraints.apply(plan)
        if self._adapters is not None:
            self._adapters.apply(plan)
        sampling = int(plan.samples.sum()) + plan.num_drafts
        told = self._run(plan, sampling).moved(pinned.download)
        token_ids = pinned.download(self._step.token_ids[:sampling])
        hidden = self._step.hidden
        if hidden is not None:  # the next step may be computed before anybody looks
            hidden = hidden[: plan.num_tokens].clone()
        done.record()
        if self._adapters is not None:
            self._adapters.load_later()
        self._last = KernelTicket(plan, token_ids, told, began, begun, done, hidden)
        return self._last

    def _run(self, plan: StepPlan, sampling: int) -> Told:
        """By graph where there is one for such a step."""
        form, shared = self._form_of(plan, sampling)
        lines = max(len(plan.rows), sampling) if form is None else form.lines
        order = None
        if form is not None and form.most == 1 and lines > IN_ORDER and self._step.hidden is None:
            order = self._order_of(plan)
        self._staging.send(plan, plan.index % IN_FLIGHT, lines, shared, order)
        if not fits(plan, lines):
            self._batch.grow(plan.grown)
        if form is None:
            return self._run_ragged(plan, lines, sampling)
        if self._adapters is not None and form.changes:
            self._adapters.send(plan, plan.index % IN_FLIGHT, lines, order and order.lines)
        forward, draw = self._graphs.pair(form)
        forward.replay()
        return self._sample(plan, lines, sampling, draw)

    def _form_of(self, plan: StepPlan, sampling: int) -> tuple[Form | None, int]:
        """What graph serves the step, None: none does; and leading blocks that are read once, 0: none."""
        if self._step.finds_scales:
            return None, 0
        changes = 0 if self._adapters is None else self._adapters.changes_of(plan)
        tokens = plan.num_tokens
        if sampling == tokens and plan.drafts is None:
            shared = 0 if changes else self._batch.shared_blocks(plan)
            return self._graphs.decodes(tokens, shared > 0, changes), shared
        if changes or plan.scoring is not None:
            return None, 0
        if sampling == tokens:
            return self._graphs.verifying(tokens), 0
        return self._graphs.chunks(tokens, max(len(plan.rows), sampling)), 0

    def _run_ragged(self, plan: StepPlan, lines: int, sampling: int) -> Told:
        """Any step, launch by launch; `lines`: of the packed array."""
        scores = self._forward(plan, lines, sampling)
        sampled = self._sample(plan, lines, sampling, None)
        return sampled._replace(scoring=scores.scoring, scored=scores.scored)

    def _forward(self, plan: StepPlan, lines: int, sampling: int) -> Told:
        """Compute a step that no graph serves; logprobs of its prompt tokens, where they are wanted."""
        bounds = bounds_of(plan, self._step.attends_whole)
        begins = np.cumsum(plan.counts, dtype=np.int64) - plan.counts
        scored = scored_by(plan, begins, self._batch.additions)
        places = None if scored is None else self._batch.pinned.upload(scored.places)
        adapted = None
        if self._adapters is not None and (changes := self._adapters.changes_of(plan)):
            adapted = self._adapters.operations_of(plan, None if scored is None else scored.places, changes)
        hidden = self._step.forward(lines, plan.num_tokens, sampling, bounds, False, places, adapted)
        if scored is None:
            return NOTHING
        scoring = self._step.score(hidden, scored, self._mode.endswith("logits"))
        return Told(scoring=scoring, scored=scored)

    def _sample(self, plan: StepPlan, size: int, sampling: int, draw: Replay | None) -> Told:
        """Draw the tokens. `draw`: the graph that does so where nothing else is wanted, if there is one."""
        if not sampling:
            return NOTHING
        if self._sampler is not None:
            return self._process(self._sampler, plan, size)
        rows = plan.yields.rows.tolist() if self._batch.special else []
        asking = [(line, row) for line, row in enumerate(rows) if row in self._batch.special]
        if draw is not None and not asking and not plan.logprobs:
            draw.replay()
            return NOTHING
        constrained = self._masks(plan)
        return self._draw(plan, size, sampling, asking, constrained)

    def _process(self, sampler: Sampler, plan: StepPlan, lines: int) -> Told:
        """Draw in plain torch: logits processors want float32, between the sampler's own steps."""
        rows, lengths = plan.yields.rows.astype(np.int64), plan.yields.positions.astype(np.int64)
        logits, batch = self._step.logits[: len(rows)], self._batch
        constrained = self._masks(plan)
        sampled = sampler.sample(
            logits, rows, lengths, batch.additions, batch.tokens, plan.logprobs, constrained
        )
        self._step.take(lines, sampled.token_ids)
        columns, wanted, failed, lost = sampled.logprobs, sampled.wanted, sampled.failed, sampled.lost
        return Told(columns, wanted, failed=failed, constrained=constrained, lost=lost)

    def _masks(self, plan: StepPlan) -> Constrained | None:
        """What grammars let come next, found while the device computes the logits.

        The tokens of the step before may still be on their way.
        """
        last = self._last
        if last is not None and last.told.constrained is not None:
            last.done.wait()
            last.told.constrained.take(last.token_ids.numpy(), last.told.lost)
        constrained = self._constraints.masks(plan)
        if constrained is not None:
            self._batch.follow(constrained.forced)
        return constrained

    def _order_of(self, plan: StepPlan) -> Order:
        """Made once for each membership: all contexts grow alike."""
        if plan.rows is not self._ordered:
            self._ordered, self._order = plan.rows, longest_last(plan.starts)
        return self._order

    def _draw(
        self,
        plan: StepPlan,
        lines: int,
        sampling: int,
        asking: list[tuple[int, int]],
        constrained: Constrained | None,
    ) -> Told:
        """Draw launch by launch.

        Args:
            asking: lines and rows that want more than a token.
            constrained: lines that grammars let only some tokens follow.
        """
        params = [(line, self._batch.additions[row].params) for line, row in asking]
        adjusting = plan if any(is_adjusted(p) for _, p in params) else None
        drawn = self._step.draw(lines, sampling, adjusting, constrained)
        wanted, as_logits = wanted_by(params, sampling, plan.logprobs), self._mode.endswith("logits")
        if wanted is None:
            return Told(constrained=constrained)
        if self._mode.startswith("raw"):
            columns = self._step.raw_logprobs(sampling, wanted, as_logits)
        else:
            columns = self._step.processed_logprobs(drawn, sampling, wanted, as_logits)
        return Told(columns, wanted, constrained=constrained)

    @naming_faults
    def collect(self, ticket: KernelTicket) -> StepResult:
        """Wait for a step; its tokens are on the host then."""
        ticket.done.wait()
        token_ids = ticket.token_ids.numpy().astype(np.int32)
        told = ticket.told.moved(torch.clone)
        columns = None
        if told.columns is not None and told.wanted is not None:
            columns = to_columns(told.columns, told.wanted)
        scores: tuple[Scores, ...] = ()
        if told.scoring is not None and told.scored is not None:
            scores = to_scores(told.scoring, told.scored)
        device_s = ticket.done.since(ticket.begun)
        plan = ticket.plan
        refused, masked, forced, accepted = outcome(plan, told.constrained, token_ids, told.lost)
        result = StepResult(
            plan.index, plan.rows[plan.samples], token_ids, columns, ticket.launch_s, self._clock(), device_s,
            scores, (*told.failed, *refused), masked, forced, accepted,
        )  # fmt: skip
        if self.drafter is None:
            return result
        return drafted_behind(self.drafter, plan, result, ticket.hidden, self._clock)

    def warm(self, plans: Iterable[StepPlan]) -> None:
        """Run steps of no request, one after the other, and forget them."""
        sampler, self._sampler = self._sampler, None  # nobody's processors see these, and nobody drafts
        drafter, self.drafter = self.drafter, None
        for plan in plans:
            self.collect(self.launch(plan))
            asking = {row: self._batch.additions[row].params for row in sorted(self._batch.special)}
            self._step.warm_mask([row for row, params in asking.items() if is_adjusted(params)])
            self.reset()
        self._sampler, self.drafter = sampler, drafter

    def reset(self) -> None:
        """Forget the batch. What the cache holds stays, as far as the scheduler still trusts it."""
        self._batch.clear()
        self._constraints.clear()
        if self._adapters is not None:
            self._adapters.clear()
        if self.drafter is not None:
            self.drafter.reset()
        self._last = None
