"""Long prompts that stand alone are attended apart, each once, and all else in a step by the kernels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from workbench.kernels.attention.tiling import FEW_ROWS

from workbench.engine.plan import Growth, StepPlan
from workbench.runtime.kernel_attention import bounds_of
from workbench.runtime.whole_prompts import LEAST, STEP, attend_whole

NOTHING = np.empty(0, np.int32)


def plan_of(starts: list[int], counts: list[int]) -> StepPlan:
    rows = np.arange(len(starts), dtype=np.int32)
    columns = [np.array(column, np.int32) for column in (starts, counts)]
    grown = (Growth(NOTHING, NOTHING, NOTHING),)
    return StepPlan(0, 99, rows, *columns, np.ones(len(rows), bool), NOTHING, (), grown)


def test_a_step_of_whole_prompts_leaves_nothing_to_the_kernels() -> None:
    bounds = bounds_of(plan_of([0, 0], [LEAST, 2 * LEAST]), finding_whole=True)
    assert bounds.whole == (slice(0, LEAST), slice(LEAST, 3 * LEAST))
    assert bounds.count == 0


def test_everybody_else_has_fewer_tokens_than_the_bound_says_and_whole_prompts_have_more() -> None:
    dice = np.random.default_rng(7)
    for _ in range(300):
        n = int(dice.integers(1, 8))
        starts = (dice.integers(0, 2, n) * dice.integers(1, 5000, n)).tolist()
        counts = dice.choice([1, 5, 100, LEAST - 1, LEAST, LEAST + 7, 3 * LEAST], n).tolist()
        bounds = bounds_of(plan_of(starts, counts), finding_whole=True)
        begins = np.cumsum([0, *counts]).tolist()
        lines = [slice(begin, end) for begin, end in itertools.pairwise(begins)]
        for line, start, count in zip(lines, starts, counts, strict=True):
            if line in bounds.whole:
                assert start == 0
                assert count >= LEAST
                assert count > bounds.count
            else:
                assert count <= bounds.count, "the kernels are told to leave it to others"
        if bounds.count:
            assert bounds.count > FEW_ROWS


def test_where_torch_is_no_faster_all_is_left_to_the_kernels() -> None:
    assert bounds_of(plan_of([0], [LEAST]), finding_whole=False).whole == ()


@pytest.mark.gpu
@pytest.mark.parametrize("length", [STEP, 3 * STEP - 1, 2 * STEP + 1])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_each_prompt_sees_itself_and_nothing_behind(length: int, kv_heads: int) -> None:
    heads, dim, device = 4, 128, torch.device("cuda")
    generator = torch.Generator(device).manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    tokens = 2 * length + 5
    query, qkv = draw(tokens, heads, dim), draw(tokens, (heads + 2 * kv_heads) * dim)
    qkv[length : length + 5] = float("nan")  # somebody between the two
    query[length : length + 5] = float("nan")
    out = torch.full((tokens, heads * dim), 7.0, device=device, dtype=torch.bfloat16)
    prompts = [slice(0, length), slice(length + 5, tokens)]
    attend_whole(query, qkv, prompts, kv_heads, dim**-0.5, out)
    assert (out[length : length + 5] == 7.0).all()
    for prompt in prompts:
        q = query[prompt].double()
        k, v = qkv.view(tokens, -1, dim)[prompt, heads:].double().split(kv_heads, dim=1)
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) * dim**-0.5
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        expected = torch.einsum("hts,shd->thd", scores.masked_fill(~mask, float("-inf")).softmax(-1), v)
        found = out[prompt].view(length, heads, dim).double()
        assert (
            found - expected
        ).norm() / expected.norm() < 4e-3  # one rounding of weights, one of the result
