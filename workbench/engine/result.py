"""What one step yielded: plain arrays, in the order of the plan's rows that sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.engine.plan import Ints

Floats = npt.NDArray[np.float32]


class LogprobColumns(NamedTuple):
    """Log probabilities of one step, a line for each row that sampled.

    `top_ids` is as wide as the largest request in the batch, or an observer, wants; each reads its first k.
    """

    sampled: Floats  # [m]; of the sampled token, natural log
    ranks: Ints  # [m]; of the sampled token: 1 + the number of tokens with a larger logprob
    top_ids: Ints  # [m, k]; best first
    top_logprobs: Floats  # [m, k]
    entropies: Floats  # [m]; nats, of the distribution the logprobs are of


class Failure(NamedTuple):
    """A row whose token could not be sampled as asked: its request ends."""

    row: int
    message: str


class StepResult(NamedTuple):
    """The tokens of one step and the times at which it was launched and collected."""

    index: int  # type: ignore[assignment]  # the plan's; shadows tuple.index, unused here
    rows: Ints  # [m]; plan.rows[plan.samples]
    token_ids: Ints  # [m]
    logprobs: LogprobColumns | None  # None when no row asked
    launch_s: float  # clock when the runner took the plan
    collect_s: float  # clock when the tokens were on the host
    device_s: float  # seconds the device computed
    failed: tuple[Failure, ...] = ()  # rows whose requests end with "error"
