"""Greedy tokens and logits in float32 are transformers' own, however the work is cut up."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams

COUNT = 10
LONGEST = 64
# Blocks of 8 that hold one request of LONGEST (Qwen2 has two KV groups), and not all that want to run.
# A request of Mistral's gives back what left its window, so that two together must not fill the pool.
SCARCE = {"llama": 8, "mistral": 10, "qwen2": 16, "qwen3": 8}


def prompts() -> list[list[int]]:
    """Lengths that fall on, before and behind block and window boundaries; two pairs share a prefix."""
    dice = random.Random(7)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(40)]

    def fresh(count: int) -> list[int]:
        return [dice.randrange(3, tiny.VOCAB) for _ in range(count)]

    return [shared + fresh(9), fresh(1), shared[:32], fresh(23), shared + fresh(12), fresh(47)]


def params(count: int) -> list[SamplingParams]:
    """Alternating n = 1 and n = 3."""
    return [SamplingParams(temperature=0, max_tokens=COUNT, n=3 if i % 2 else 1) for i in range(count)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("budget", [16, 64, 512, None])
@pytest.mark.parametrize("pool", ["roomy", "scarce"])
def test_greedy_tokens_are_those_of_transformers(
    models: Models, open_llm: Open, family: str, budget: int | None, pool: str
) -> None:
    given = prompts()
    expected = [models.greedy(prompt, COUNT, family) for prompt in given]
    for caching, overlapped in product([True, False], [True, False]):
        llm = open_llm(
            family,
            max_model_len=LONGEST,
            block_size=8,
            max_num_seqs=16,
            max_num_batched_tokens=budget,
            enable_prefix_caching=caching,
            async_scheduling=overlapped,
            num_gpu_blocks_override=SCARCE[family] if pool == "scarce" else 200,
        )
        outputs = llm.generate(given, params(len(given)), use_tqdm=False)
        where = f"caching {caching}, overlapped {overlapped}"
        for output, tokens in zip(outputs, expected, strict=True):
            for child in output.outputs:
                assert list(child.token_ids) == tokens, where
        preemptions = sum(output.metrics.num_preemptions for output in outputs)
        assert (preemptions > 0) == (pool == "scarce"), where


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("budget", [16, None])
def test_logits_are_within_1e_4_of_transformers(
    models: Models, open_llm: Open, family: str, budget: int | None
) -> None:
    llm = open_llm(family, max_num_seqs=8, max_num_batched_tokens=budget, logprobs_mode="raw_logits")
    asked = SamplingParams(temperature=0, max_tokens=COUNT, logprobs=20)
    for output in llm.generate(prompts(), asked, use_tqdm=False):
        tokens = list(output.outputs[0].token_ids)
        given = [*output.prompt_token_ids, *tokens]
        behind = tiny.logits(models.oracle(family), given)[len(output.prompt_token_ids) - 1 : -1]
        assert len(output.outputs[0].logprobs) == len(tokens)
        for token, entry, row in zip(tokens, output.outputs[0].logprobs, behind, strict=True):
            assert token in entry
            assert 20 <= len(entry) <= 21
            best = row.topk(20).values
            found = sorted((value.logprob for value in entry.values()), reverse=True)
            torch.testing.assert_close(torch.tensor(found[:20]), best, rtol=0, atol=1e-4)
            for token_id, value in entry.items():
                assert abs(value.logprob - float(row[token_id])) < 1e-4


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_long_prompts_of_one_length_do_not_disturb_each_other(
    models: Models, open_llm: Open, family: str
) -> None:
    """Several prompts of the same length, longer than one piece of masked attention, in one step."""
    dice = random.Random(3)
    given = [[dice.randrange(3, tiny.VOCAB) for _ in range(600)] for _ in range(3)]
    llm = open_llm(family, max_model_len=700, max_num_seqs=8)
    outputs = llm.generate(given, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    assert llm.trace.steps["scheduled"].iloc[0] == 1800
    for output, prompt in zip(outputs, given, strict=True):
        assert list(output.outputs[0].token_ids) == models.greedy(prompt, 4, family)


def test_a_long_prefill_threshold_changes_no_token(models: Models, open_llm: Open) -> None:
    llm = open_llm(long_prefill_token_threshold=5, max_num_batched_tokens=32, max_num_seqs=8)
    outputs = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=COUNT), use_tqdm=False)
    assert llm.trace.step_requests["scheduled"].max() <= 5
    for output, prompt in zip(outputs, prompts(), strict=True):
        assert list(output.outputs[0].token_ids) == models.greedy(prompt, COUNT)


@pytest.mark.parametrize("block_size", [1, 3, 16, 64])
def test_the_block_size_changes_no_token(models: Models, open_llm: Open, block_size: int) -> None:
    for family in ("llama", "qwen2"):
        llm = open_llm(family, block_size=block_size, max_num_batched_tokens=48, max_num_seqs=8)
        first = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=COUNT), use_tqdm=False)
        again = llm.generate(prompts(), SamplingParams(temperature=0, max_tokens=COUNT), use_tqdm=False)
        for output, cached, prompt in zip(first, again, prompts(), strict=True):
            assert list(output.outputs[0].token_ids) == models.greedy(prompt, COUNT, family)
            assert list(cached.outputs[0].token_ids) == models.greedy(prompt, COUNT, family)
            assert cached.num_cached_tokens == (len(prompt) - 1) // block_size * block_size


def test_the_xxhash_algorithm_finds_the_same_prefixes(models: Models, open_llm: Open) -> None:
    llm: LLM = open_llm(prefix_caching_hash_algo="xxhash")
    prompt = prompts()[0]
    for cached in (0, 48):
        (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=COUNT), use_tqdm=False)
        assert output.num_cached_tokens == cached
        assert list(output.outputs[0].token_ids) == models.greedy(prompt, COUNT)
