"""Who goes first. A policy orders requests; it moves no tokens and holds no state.

To try another rule, write a class with `key` and hand it to `LLM(scheduling_policy=...)`.
"""

from __future__ import annotations

from typing import Any, Protocol

from workbench.engine.request import Request


class Policy(Protocol):
    """An order over requests."""

    def key(self, request: Request) -> Any:
        """A sortable value: the smallest is admitted first, the largest running one is preempted first."""
        ...


class FirstComeFirstServed:
    """In the order of arrival."""

    def key(self, request: Request) -> int:
        return request.arrival


class Priority:
    """The smallest `priority` value first, then in the order of arrival."""

    def key(self, request: Request) -> tuple[int, int]:
        return (request.priority, request.arrival)


POLICIES = ("fcfs", "priority")  # by name


def policy_named(policy: str | Policy) -> Policy:
    """The policy behind `scheduling_policy`: "fcfs", "priority", or an object with a `key` method."""
    if policy == "fcfs":
        return FirstComeFirstServed()
    if policy == "priority":
        return Priority()
    if isinstance(policy, str) or not callable(getattr(policy, "key", None)):
        raise ValueError(
            f"scheduling_policy={policy!r} is unknown: use 'fcfs', 'priority', or an object with key(request)"
        )
    return policy
