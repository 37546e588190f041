"""A runner that raises now and then, before or after the real one has worked. Knows no scheduler."""

from __future__ import annotations

import random
from typing import Any


class Injected(RuntimeError):
    """A fault that was asked for."""


class FaultyRunner:
    """Stands in front of a runner; one launch or collect in `every` raises."""

    def __init__(self, real: Any, rng: random.Random, every: int) -> None:
        self._real = real
        self._rng = rng
        self._every = every
        self.raised = 0

    def launch(self, plan: Any) -> Any:
        self._maybe("before the launch", plan.index)
        ticket = self._real.launch(plan)
        self._maybe("behind the launch", plan.index)
        return ticket

    def collect(self, ticket: Any) -> Any:
        result = self._real.collect(ticket)
        self._maybe("behind the collect", result.index)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _maybe(self, where: str, index: int) -> None:
        if self._rng.randrange(3 * self._every) == 0:  # three places a step
            self.raised += 1
            raise Injected(f"injected {where} of step {index}")
