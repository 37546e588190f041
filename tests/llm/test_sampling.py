"""A seeded draw depends on its own request alone: on its seed, its tokens and its options."""

from __future__ import annotations

import asyncio
import pickle
import random
from itertools import pairwise

import pytest

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams

COUNT = 14

OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 12},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.0},
    {"temperature": 1.1, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": {7: 3.0, 9: -5.0}, "min_tokens": 6},
    {"temperature": 1.0, "allowed_token_ids": list(range(5, 60))},
]


def requests() -> tuple[list[list[int]], list[SamplingParams]]:
    dice = random.Random(11)
    prompts = [[dice.randrange(3, tiny.VOCAB) for _ in range(9 + 7 * i)] for i in range(len(OPTIONS))]
    prompts[4][:32] = prompts[3][:32]  # two that share a prefix
    params = [
        SamplingParams(**options, seed=100 + i, max_tokens=COUNT, ignore_eos=True)
        for i, options in enumerate(OPTIONS)
    ]
    return prompts, params


def tokens_of(outputs: list) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def alone(models: Models) -> list[list[int]]:
    """What each request draws in an engine of its own."""
    drawn = []
    for prompt, own in zip(*requests(), strict=True):
        with LLM(str(models.folder()), device="cpu", max_model_len=256) as llm:
            drawn += tokens_of(llm.generate([prompt], own, use_tqdm=False))
    return drawn


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16, "max_num_seqs": 8},
        {"enable_prefix_caching": False, "max_num_seqs": 2},
        {"async_scheduling": True, "max_num_batched_tokens": 40, "max_num_seqs": 16},
        {"block_size": 4, "num_gpu_blocks_override": 24, "max_model_len": 96},
        {"block_size": 4, "num_gpu_blocks_override": 24, "max_model_len": 96, "async_scheduling": True},
    ],
    ids=["batched", "chunked", "two at a time", "overlapped", "preempted", "preempted, overlapped"],
)
def test_seeded_tokens_do_not_depend_on_the_company(
    open_llm: Open, alone: list[list[int]], settings: dict
) -> None:
    llm = open_llm(**settings)
    outputs = llm.generate(*requests(), use_tqdm=False)
    assert tokens_of(outputs) == alone
    if "num_gpu_blocks_override" in settings:
        assert sum(output.metrics.num_preemptions for output in outputs) > 0


def test_seeded_tokens_are_the_same_by_hand_and_streamed(open_llm: Open, alone: list[list[int]]) -> None:
    prompts, params = requests()
    llm = open_llm(max_num_batched_tokens=32, max_num_seqs=8)
    names = [llm.add_request(prompt, own) for prompt, own in zip(prompts, params, strict=True)]
    ended = {}
    while llm.has_unfinished_requests():
        ended |= {output.request_id: output for output in llm.step().outputs if output.finished}
    assert tokens_of([ended[name] for name in names]) == alone

    streamed = [
        [token for output in llm.stream(prompt, own) for token in output.outputs[0].token_ids]
        for prompt, own in zip(prompts, params, strict=True)
    ]
    assert streamed == alone

    async def one(prompt: list[int], own: SamplingParams) -> list[int]:
        return [token async for out in llm.astream(prompt, own) for token in out.outputs[0].token_ids]

    async def everyone() -> list[list[int]]:
        return await asyncio.gather(*(one(p, own) for p, own in zip(prompts, params, strict=True)))

    assert asyncio.run(everyone()) == alone


def test_another_seed_gives_other_tokens(open_llm: Open) -> None:
    llm = open_llm()
    prompt = requests()[0][0]
    drawn = [
        tokens_of(llm.generate([prompt], SamplingParams(seed=seed, max_tokens=COUNT), use_tqdm=False))[0]
        for seed in (1, 2, -3, 2**40, 2**64 + 5)
    ]
    assert len({tuple(tokens) for tokens in drawn}) == 5


def test_the_engine_seed_decides_unseeded_requests(open_llm: Open) -> None:
    prompt = requests()[0][0]

    def draw(llm: LLM) -> list[list[int]]:
        return tokens_of(llm.generate([prompt] * 3, SamplingParams(max_tokens=COUNT), use_tqdm=False))

    first, again, other = draw(open_llm(seed=4)), draw(open_llm(seed=4)), draw(open_llm(seed=5))
    assert first == again
    assert len({tuple(tokens) for tokens in first + other}) == 6, "no two unseeded requests draw alike"


def test_n_outputs_differ_and_each_is_reproducible(open_llm: Open) -> None:
    llm = open_llm()
    prompt = requests()[0][3]
    params = SamplingParams(n=4, seed=9, max_tokens=COUNT)
    (first,) = llm.generate([prompt], params, use_tqdm=False)
    (again,) = open_llm(max_num_seqs=2).generate([prompt], params, use_tqdm=False)
    texts = [tuple(child.token_ids) for child in first.outputs]
    assert [child.index for child in first.outputs] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert texts == [tuple(child.token_ids) for child in again.outputs]


def test_cutoffs_keep_what_they_promise(open_llm: Open) -> None:
    """Sampled tokens lie within the top k, or within what the processed logprobs call possible."""
    llm = open_llm(logprobs_mode="processed_logprobs")
    prompts, _ = requests()
    params = SamplingParams(temperature=1.5, top_k=3, max_tokens=COUNT, logprobs=5, ignore_eos=True)
    for output in llm.generate(prompts, params, use_tqdm=False):
        for entry in output.outputs[0].logprobs:
            finite = [value for value in entry.values() if value.logprob > float("-inf")]
            assert len(finite) == 3
            assert next(iter(entry.values())).rank <= 3


def test_min_tokens_forbids_every_way_to_stop(open_llm: Open) -> None:
    """Every token but two is a stop; before min_tokens only those two can come."""
    llm = open_llm()
    stops = list(range(2, tiny.VOCAB))
    params = SamplingParams(seed=1, max_tokens=20, min_tokens=9, stop_token_ids=stops)
    (output,) = llm.generate([requests()[0][0]], params, use_tqdm=False)
    ids = list(output.outputs[0].token_ids)
    assert set(ids[:9]) == {1}, "0 is EOS and 2 and more are stop ids"
    assert len(ids) > 9


def test_logprobs_are_those_of_the_model_and_ranks_count_from_one(open_llm: Open) -> None:
    llm = open_llm()
    for width in (0, 1, 5):
        params = SamplingParams(seed=3, max_tokens=6, logprobs=width, ignore_eos=True)
        (output,) = llm.generate([requests()[0][2]], params, use_tqdm=False)
        child = output.outputs[0]
        assert len(child.logprobs) == 6
        for token, entry in zip(child.token_ids, child.logprobs, strict=True):
            assert width <= len(entry) <= width + 1
            assert next(iter(entry)) == token, "the sampled token comes first"
            ranked = sorted(entry.values(), key=lambda value: value.rank)
            assert all(a.logprob >= b.logprob for a, b in pairwise(ranked))
        total = sum(
            entry[token].logprob for token, entry in zip(child.token_ids, child.logprobs, strict=True)
        )
        assert child.cumulative_logprob == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("top_k", [tiny.VOCAB, 2**63, 10**30])
def test_a_cut_off_beyond_the_vocabulary_cuts_nothing_off(open_llm: Open, top_k: int) -> None:
    llm = open_llm()
    few, all_ = (SamplingParams(seed=5, max_tokens=8, top_k=k, ignore_eos=True) for k in (top_k, 0))
    cut, whole = llm.generate(["the bird"] * 2, [few, all_], use_tqdm=False)
    assert cut.outputs[0].token_ids == whole.outputs[0].token_ids
    assert cut.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("tokenizer", [True, False])
def test_outputs_can_be_pickled_without_the_tokenizer(open_llm: Open, tokenizer: bool) -> None:
    llm = open_llm(skip_tokenizer_init=not tokenizer)
    params = SamplingParams(seed=5, max_tokens=4, logprobs=2)
    (output,) = llm.generate([[3, 4, 5]], params, use_tqdm=False)
    pickled = pickle.dumps(output)
    assert pickle.loads(pickled) == output
    assert len(pickled) < 10_000
