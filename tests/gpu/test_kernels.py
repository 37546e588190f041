"""On a GPU, by the project's kernels and graphs: tokens do not depend on how a step was computed."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.gpu.test_eager import COUNT, PROMPTS, expected  # noqa: F401 - a fixture
from workbench import LLM, SamplingParams

pytestmark = pytest.mark.gpu


def greedy(count: int = COUNT) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("budget", [16, 4096])
@pytest.mark.parametrize("blocks", [None, 14])
def test_greedy_tokens_equal_transformers(expected, enforce_eager, async_scheduling, budget, blocks):  # noqa: F811
    settings = {"max_num_batched_tokens": budget, "max_num_seqs": 16, "enforce_eager": enforce_eager}
    settings |= {"kv_cache_memory_bytes": 1 << 28} if blocks is None else {"num_gpu_blocks_override": blocks}
    with LLM(device="cuda", dtype="float32", async_scheduling=async_scheduling, **settings) as llm:
        outputs = llm.generate(PROMPTS, greedy(), use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert blocks is None or sum(output.metrics.num_preemptions for output in outputs) > 0


def test_graphs_and_single_launches_agree_to_the_bit_in_bfloat16():
    found = []
    for enforce_eager in (False, True):
        with LLM(
            device="cuda",
            dtype="bfloat16",
            kv_cache_memory_bytes=1 << 28,
            enforce_eager=enforce_eager,
            max_num_seqs=8,
        ) as llm:
            params = SamplingParams(temperature=1.0, seed=5, max_tokens=COUNT, ignore_eos=True, logprobs=3)
            outputs = llm.generate([*PROMPTS, PROMPTS[3] * 2], params, use_tqdm=False)  # five: a graph of six
        found.append(
            [
                [(t, v.logprob, v.rank) for line in o.outputs[0].logprobs for t, v in line.items()]
                for o in outputs
            ]
        )
    assert found[0] == found[1]


def test_a_prefix_that_many_share_is_read_once_with_the_same_tokens():
    text = PROMPTS[0] * 12  # long enough to be read apart
    prompts = [text + PROMPTS[i % 4] for i in range(12)]
    with LLM(device="cuda", dtype="float32", kv_cache_memory_bytes=1 << 28, max_num_seqs=16) as llm:
        together = llm.generate(prompts, greedy(24), use_tqdm=False)
        alone = [llm.generate([prompt], greedy(24), use_tqdm=False)[0] for prompt in prompts]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]


def test_open_and_close_leave_gpu_memory_where_it_was():
    def once() -> int:
        with LLM(device="cuda", kv_cache_memory_bytes=1 << 28, max_num_seqs=8) as llm:
            llm.generate("The owl", SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
        gc.collect()
        return torch.cuda.memory_allocated()

    before = once()
    assert all(abs(once() - before) <= 1 << 20 for _ in range(10))


def test_a_pool_that_takes_what_is_left_leaves_room_for_the_largest_step():
    with LLM(device="cuda", gpu_memory_utilization=0.5) as llm:
        prompts = [list(range(10, 1500)) for _ in range(24)]
        outputs = llm.generate(prompts, greedy(8), use_tqdm=False)
        assert all(len(output.outputs[0].token_ids) == 8 for output in outputs)
