"""What one step by hand did, as `llm.step()` returns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workbench.engine.flight import Commit
from workbench.outputs import RequestOutput


@dataclass(frozen=True, slots=True)
class Step:
    """One step, from plan to commit."""

    index: int  # of the engine's steps; -1 when there was nothing to compute
    budget: int  # tokens the step could hold
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)  # request id -> tokens computed
    cached: dict[str, int] = field(default_factory=dict)  # request id -> tokens reused when it was admitted
    preempted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    outputs: list[RequestOutput] = field(default_factory=list)

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())

    def __repr__(self) -> str:
        if self.index < 0:
            return f"Step(no step; finished {self.finished})" if self.finished else "Step(nothing to do)"
        who = ", ".join(f"{name}: {count}" for name, count in self.num_scheduled_tokens.items())
        notes = [f"{self.total_num_scheduled_tokens} of {self.budget} tokens {{{who}}}"]
        if hits := {name: count for name, count in self.cached.items() if count}:
            notes.append(f"cached {hits}")
        notes += [f"{what} {names}" for what in ("preempted", "finished") if (names := getattr(self, what))]
        return f"Step({self.index}: {'; '.join(notes)})"


def describe(commit: Commit | None, budget: int, outputs: Sequence[RequestOutput]) -> Step:
    """The step behind a commit; None is one in which there was nothing to do."""
    if commit is None:
        return Step(-1, budget, outputs=list(outputs))
    finished = [request.request_id for request in commit.finished]
    if commit.flight is None:
        return Step(-1, budget, finished=finished, outputs=list(outputs))
    plan, names = commit.flight.plan, commit.flight.names
    cached = {added.row: int(start) for added in plan.added for start in plan.starts[plan.rows == added.row]}
    return Step(
        index=plan.index,
        budget=plan.budget,
        num_scheduled_tokens={
            names[row]: count for row, count in zip(plan.rows.tolist(), plan.counts.tolist(), strict=True)
        },
        cached={names[row]: tokens for row, tokens in cached.items()},
        preempted=list(commit.flight.preempted),
        finished=finished,
        outputs=list(outputs),
    )
