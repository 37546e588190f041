"""What a drafter in the runner is given after each step, and gives. Knows plans and tensors; no drafter."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from workbench.engine.clock import Clock
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.result import Forced, Proposed, StepResult

Longs = npt.NDArray[np.int64]

NOBODY_OVER: frozenset[int] = frozenset()


class Seen(NamedTuple):
    """A step that has been computed and verified; where it asks for drafts, the next is not launched yet."""

    plan: StepPlan
    token_ids: Ints  # [m + e]; sampled, in the order of `plan.yields`
    accepted: Ints | None  # [s]; leading drafts of each of the plan's drafts' lines that stand
    forced: tuple[Forced, ...]  # tokens that follow some rows by themselves
    over: frozenset[int]  # batch rows whose requests end with the step, for it failed them
    hidden: Tensor | None  # [T, hidden] model dtype, device, in the plan's order; None where not asked for

    @property
    def lengths(self) -> Longs:
        """[n]; tokens each line's request has by now, what was sampled last included."""
        plan = self.plan
        lengths = (plan.starts + plan.counts).astype(np.int64) + plan.samples
        if plan.drafts is not None and self.accepted is not None:
            lengths[plan.drafts.lines] -= plan.drafts.counts - self.accepted
        return lengths


class StepDrafter(Protocol):
    """Drafts inside the step, on the device: for each line that the plan asks of, behind its last token.

    It may have a KV cache of its own: tensors of one more block than the pool has, which block tables of the
    plan index like the model's. What lies in a block is the drafter's own business: that a request finds a
    prefix says that the model's keys are there, not that the drafter's are.
    """

    wants_hidden: bool  # the model's hidden states of every token of every step

    def draft(self, seen: Seen) -> Proposed | None:
        """Called for every step in the order of the plans, asked or not.

        What computes with tensors does so under torch.inference_mode(), as the model does.
        """
        ...

    def reset(self) -> None:
        """The batch is empty, and a step may have been lost: nothing that was written is to be trusted."""
        ...


def drafted_behind(
    drafter: StepDrafter, plan: StepPlan, result: StepResult, hidden: Tensor | None, clock: Clock
) -> StepResult:
    """The step's result with what was drafted behind it, and the time that took."""
    over = frozenset([failure.row for failure in result.failed]) if result.failed else NOBODY_OVER
    proposed = drafter.draft(Seen(plan, result.token_ids, result.accepted, result.forced, over, hidden))
    if plan.asks is None:
        return result
    now = clock()
    device_s = result.device_s + now - result.collect_s
    return result._replace(proposed=proposed, collect_s=now, device_s=device_s)
