"""Computes plans on a GPU with the project's kernels: decodes by graph, everything else launch by launch.

A launch queues a step and returns; its tokens stay on the device, where the next step finds them, and travel
to the host by themselves. Knows rows and plans; nothing of requests or schedules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.clock import Clock
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.result import LogprobColumns, StepResult
from workbench.runtime.constraints import Constrained, Constraints, accept
from workbench.runtime.device import naming_faults
from workbench.runtime.device_batch import DeviceBatch
from workbench.runtime.graphs import DecodeGraphs
from workbench.runtime.kernel_attention import bounds_of
from workbench.runtime.kernel_step import KernelStep
from workbench.runtime.sampler import Columns, LogprobsMode, is_adjusted, to_columns
from workbench.runtime.step_arrays import IN_ORDER, Order, Staging, fits, longest_last

IN_FLIGHT = 4  # steps whose memory on the host is kept apart


class Moment:
    """A point in the order of the device's work: an event on a GPU, the clock elsewhere."""

    def __init__(self, on_gpu: bool, clock: Clock) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if on_gpu else None
        self._clock = clock
        self._at = 0.0

    def record(self) -> None:
        if self._event is None:
            self._at = self._clock()
        else:
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def since(self, other: Moment) -> float:
        """Seconds between the two on the device."""
        if self._event is None or other._event is None:
            return self._at - other._at
        return float(other._event.elapsed_time(self._event)) / 1e3


class KernelTicket(NamedTuple):
    """A step that was launched."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, unused here
    rows: Ints
    token_ids: Tensor  # [m] int64, host; good once `done` has happened
    logprobs: Columns | None  # host, as `to_columns` takes them; good then too
    launch_s: float
    begun: Moment
    done: Moment
    constrained: Constrained | None


class Computed(NamedTuple):
    """What a launch leaves behind beside its tokens."""

    logprobs: Columns | None  # device
    constrained: Constrained | None


NOTHING = Computed(None, None)


class KernelRunner:
    """One model, one KV store, one batch on the device."""

    def __init__(
        self,
        step: KernelStep,
        batch: DeviceBatch,
        staging: Staging,
        mode: LogprobsMode,
        graphs: DecodeGraphs,
        constraints: Constraints,
        clock: Clock,
    ) -> None:
        self._step = step
        self._batch = batch
        self._staging = staging
        self._mode = mode
        self._graphs = graphs
        self._constraints = constraints
        self._clock = clock
        on_gpu = batch.device.type == "cuda"
        self._ordered: Ints | None = None  # the rows that `_order` is of
        self._order = Order(np.empty(0, np.int64), np.empty(0, np.int64))
        self._moments = [(Moment(on_gpu, clock), Moment(on_gpu, clock)) for _ in range(IN_FLIGHT)]

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
        sampling = int(plan.samples.sum())
        columns, constrained = self._run(plan, sampling)
        if columns is not None:
            sampled, ranks, ids, best, entropies = map(pinned.download, columns)
            columns = sampled, ranks, ids, best, entropies
        token_ids = pinned.download(self._step.token_ids[:sampling])
        done.record()
        rows = plan.rows[plan.samples]
        return KernelTicket(plan.index, rows, token_ids, columns, began, begun, done, constrained)

    def _run(self, plan: StepPlan, sampling: int) -> Computed:
        lines = len(plan.rows)
        decodes = sampling == lines and int(plan.counts.max()) == 1
        shared = self._batch.shared_blocks(plan) if decodes else 0
        size = self._graphs.size_for(lines, shared > 0) if decodes else lines
        self._staging.send(plan, size, shared, self._order_of(plan) if decodes and size > IN_ORDER else None)
        if not fits(plan, size):
            self._batch.grow(plan.grown)
        if decodes:
            forward, draw = self._graphs.pair(size, shared > 0)
            forward.replay()
        else:
            bounds = bounds_of(plan, self._step.attends_whole)
            self._step.forward(lines, plan.num_tokens, sampling, bounds, sharing=False)
        if not sampling:
            return NOTHING
        rows = plan.rows[plan.samples].tolist() if self._batch.special else []
        asking = [(line, row) for line, row in enumerate(rows) if row in self._batch.special]
        if decodes and not asking and not plan.logprobs:
            draw.replay()
            return NOTHING
        constrained = self._constraints.masks(plan)  # while the device computes the logits
        return Computed(self._draw(size, sampling, asking, plan.logprobs, constrained), constrained)

    def _order_of(self, plan: StepPlan) -> Order:
        """Made once for each membership: all contexts grow alike."""
        if plan.rows is not self._ordered:
            self._ordered, self._order = plan.rows, longest_last(plan.starts)
        return self._order

    def _draw(
        self,
        lines: int,
        sampling: int,
        asking: list[tuple[int, int]],
        logprobs: int,
        constrained: Constrained | None,
    ) -> Columns | None:
        """Draw launch by launch.

        Args:
            asking: lines and rows that want more than a token.
            logprobs: top logprobs wanted of every line; 0: of those that ask.
            constrained: lines that grammars let only some tokens follow.
        """
        params = {line: self._batch.additions[row].params for line, row in asking}
        drawn = self._step.draw(lines, sampling, any(map(is_adjusted, params.values())), constrained)
        asked = {line: p.logprobs for line, p in params.items() if p.logprobs is not None}
        if logprobs:
            asked = {line: max(logprobs, asked.get(line, 0)) for line in range(sampling)}
        if not asked:
            return None
        wanted, as_logits = max(asked.values()), self._mode.endswith("logits")
        if self._mode.startswith("raw"):
            return self._step.raw_logprobs(sampling, wanted, as_logits)
        return self._step.processed_logprobs(drawn, list(asked), sampling, wanted, as_logits)

    @naming_faults
    def collect(self, ticket: KernelTicket) -> StepResult:
        """Wait for a step; its tokens are on the host then."""
        ticket.done.wait()
        token_ids = ticket.token_ids.numpy().astype(np.int32)
        columns: LogprobColumns | None = None
        if ticket.logprobs is not None:
            sampled, ranks, ids, best, entropies = (column.clone() for column in ticket.logprobs)
            columns = to_columns((sampled, ranks, ids, best, entropies))
        device_s = ticket.done.since(ticket.begun)
        failed = accept(ticket.constrained, token_ids)
        return StepResult(
            ticket.index, ticket.rows, token_ids, columns, ticket.launch_s, self._clock(), device_s, failed
        )

    def warm(self, plans: Iterable[StepPlan]) -> None:
        """Run steps of no request, one after the other, and forget them."""
        for plan in plans:
            self.collect(self.launch(plan))
            self.reset()

    def reset(self) -> None:
        """Forget the batch. What the cache holds stays, as far as the scheduler still trusts it."""
        self._batch.clear()
        self._constraints.clear()
