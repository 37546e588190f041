"""A plan packed in another order is the same step: each sampling line finds its own last token."""

from __future__ import annotations

import numpy as np

from workbench.engine.plan import Growth, StepPlan
from workbench.runtime.step_arrays import NOBODY, StepArrays, _places, longest_last, num_words, pack

NOTHING = np.empty(0, np.int32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def plan_of(starts: np.ndarray, counts: np.ndarray, samples: list[bool]) -> StepPlan:
    rows = np.arange(len(starts), dtype=np.int32)[::-1] + 3
    grown = (Growth(NOTHING, NOTHING, NOTHING),)
    return StepPlan(0, 99, rows, starts, counts, np.array(samples), NOTHING, (), grown)


def packed(plan: StepPlan, lines: int, ordered: bool) -> StepArrays:
    memory = np.full(num_words(lines, 1), 77, np.int32)
    fields = tuple(memory[begin:end].reshape(shape) for begin, end, shape in _places(lines, 1))
    pack(fields, plan, longest_last(plan.starts) if ordered else None)
    return StepArrays(*fields)  # type: ignore[arg-type]


def test_lines_come_by_length_and_samples_in_the_plans_order() -> None:
    plan = plan_of(ints(40, 7, 90, 8), ints(1, 1, 1, 1), [True] * 4)
    arrays = packed(plan, 6, ordered=True)
    assert arrays.starts.tolist() == [7, 8, 40, 90, 0, 0]
    assert arrays.begins.tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert arrays.token_rows.tolist() == [*plan.rows.tolist(), NOBODY, NOBODY]
    assert arrays.lengths.tolist() == [41, 8, 91, 9, 0, 0]


def test_every_sample_is_of_the_last_token_of_its_own_row_in_any_order() -> None:
    dice = np.random.default_rng(5)
    for _ in range(50):
        n = int(dice.integers(1, 9))
        starts, counts = dice.integers(0, 50, n).astype(np.int32), dice.integers(1, 5, n).astype(np.int32)
        plan = plan_of(starts, counts, [bool(dice.integers(2)) for _ in range(n)])
        for ordered in (False, True):
            arrays = packed(plan, n + 2, ordered)
            row_of = {
                token: int(row)
                for row, begin, end in zip(arrays.rows, arrays.begins, arrays.begins[1:], strict=False)
                for token in range(begin, end)
            }
            last_of = {
                int(row): int(end) - 1 for row, end in zip(arrays.rows[:n], arrays.begins[1:], strict=False)
            }
            sampling = plan.rows[plan.samples].tolist()
            assert [row_of[int(token)] for token in arrays.last[: len(sampling)]] == sampling
            assert arrays.last[: len(sampling)].tolist() == [last_of[row] for row in sampling]
