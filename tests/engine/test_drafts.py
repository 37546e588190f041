"""Drafts in the scheduler: what they may take, and what they leave behind."""

from __future__ import annotations

import numpy as np

from tests.engine.test_laws import ALONE, World, expected, output
from workbench.engine.plan import Drafts, StepPlan
from workbench.engine.result import accepted_by

ITEM = {"count": 12, "stop": (), "priority": 0, "at": 0, "abort_at": None}


def test_blocks_that_hold_nothing_but_rejected_drafts_are_given_back() -> None:
    world = World({**ALONE, "block_size": 1, "drafter": "useless"})
    made = world.request(0, [1, 2, 3], 12, (), 0)
    world.scheduler.add(made)
    while world.scheduler.has_work:
        world.step()
        if world.scheduler.running.count:
            assert len(made.tables.blocks[0]) == world.scheduler.running.computed[0]
    assert world.speculation.drafted > 8
    assert output(made) == expected(made)


def test_drafts_save_steps_when_they_are_right() -> None:
    plain, drafting = World(ALONE), World({**ALONE, "drafter": "accurate"})
    for world in (plain, drafting):
        world.run([{**ITEM, "prompt": [n, 2, 3]} for n in range(3)])
    assert drafting.steps < plain.steps
    assert drafting.speculation.accepted == drafting.speculation.drafted > 10


def test_nobody_is_preempted_for_drafts() -> None:
    for drafter in (None, "useless"):
        # Blocks for everybody's tokens, and none to spare.
        world = World({**ALONE, "block_size": 1, "num_blocks": 45, "drafter": drafter})
        made = world.run([{**ITEM, "prompt": [n, 2, 3]} for n in range(3)])
        assert [output(request) for request in made] == [expected(request) for request in made]
        assert sum(request.num_preemptions for request in made) == 0


def test_drafts_take_no_token_of_the_budget_from_anybody() -> None:
    """A step holds everybody's next token whoever drafts; what is left goes to drafts in running order."""
    world = World({**ALONE, "budget": 5, "drafter": "accurate"})
    plans: list[StepPlan] = []
    held: list[int] = []
    launch = world.runner.launch

    def noted(plan: StepPlan):
        plans.append(plan)
        held.append(world.scheduler.running.count)
        return launch(plan)

    world.runner.launch = noted
    world.run([{**ITEM, "prompt": [n, 2]} for n in range(4)])
    drafting = [plan for plan in plans if plan.drafts is not None]
    assert len(drafting) > 2
    assert all(plan.num_tokens <= 5 for plan in plans)
    assert any(plan.num_tokens == 5 for plan in drafting)
    assert all(len(plan.rows) == running for plan, running in zip(plans, held, strict=True))


def test_what_is_accepted_is_the_leading_drafts_that_were_sampled() -> None:
    ints = lambda *values: np.array(values, np.int32)  # noqa: E731
    plan = StepPlan(
        0, 99, ints(4, 9, 2), ints(5, 7, 0), ints(3, 1, 4), np.array([True, True, True]), ints(), (), (),
        drafts=Drafts(ints(0, 2), ints(2, 3), ints(10, 11, 20, 21, 22)),
    )  # fmt: skip
    assert plan.yields.rows.tolist() == [4, 9, 2, 4, 4, 2, 2, 2]
    assert plan.yields.positions.tolist() == [6, 8, 1, 7, 8, 2, 3, 4]

    def accepted(*sampled: int) -> list[int]:
        return accepted_by(plan, ints(*sampled)).tolist()

    assert accepted(10, 0, 20, 11, 1, 21, 22, 2) == [2, 3]
    assert accepted(10, 0, 20, 3, 11, 9, 22, 2) == [1, 1]
    assert accepted(3, 20, 21, 11, 11, 21, 22, 22) == [0, 0]
    assert accepted_by(plan, ints(10, 0, 20, 11, 1, 21, 22, 2), ints(4, 5)).tolist() == [1, 0]


def test_who_drafts_waits_until_all_tokens_are_known() -> None:
    world = World({**ALONE, "depth": 2, "drafter": "accurate"})
    propose = world.speculation.propose

    def checked(running, most):
        assert not world.scheduler.flights
        return propose(running, most)

    world.speculation.propose = checked
    made = world.run([{**ITEM, "prompt": [n, 2, 3]} for n in range(3)])
    assert [output(request) for request in made] == [expected(request) for request in made]
    assert world.speculation.accepted > 3
