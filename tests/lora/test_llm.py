"""Adapters through the front door: the tokens and logits of merged weights, whoever shares the batch.

The oracle is transformers with the low-rank products added to its weights, in float64.
"""

from __future__ import annotations

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llm import tiny
from tests.lora.home import (
    COUNT,
    FAMILIES,
    LOGITS,
    NAMES,
    Home,
    assert_are_of,
    mixed,
    open_llm,
    prompts,
)
from workbench import LLM, BeamSearchParams, SamplingParams


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 26, "max_num_batched_tokens": 24},
        {"max_loras": 1, "max_num_batched_tokens": 32},
        {"async_scheduling": True, "max_loras": 2, "max_num_seqs": 3},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}},
    ],
    ids=["whole", "chunked, no cache", "preempted", "one slot", "overlapped, two slots", "speculation"],
)
def test_logits_are_those_of_merged_weights_row_by_row(home: Home, family: str, settings: dict) -> None:
    """One batch of the base model and three adapters, of ranks 1, 8 and 64."""
    names = mixed(8)
    with open_llm(home.base(family), logprobs_mode="raw_logits", **settings) as llm:
        asked = [home.request(family, name) for name in names]
        for _ in range(2):  # the second time, all of it is cached
            outputs = llm.generate(prompts(8), LOGITS, lora_request=asked, use_tqdm=False)
            for name, output, request in zip(names, outputs, asked, strict=True):
                assert_are_of(home, family, name, output)
                assert output.lora_request is request
        if "num_gpu_blocks_override" in settings:
            assert llm.trace.steps.preempted.sum() > 0, "nobody was preempted"
        elif settings.get("enable_prefix_caching", True):
            assert any(output.num_cached_tokens >= 16 for output in outputs)


def test_an_adapter_changes_what_is_said(home: Home) -> None:
    """Or the oracle's agreement would say nothing."""
    with open_llm(home.base("llama")) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        asked = [home.request("llama", name) for name in (None, *NAMES)]
        outputs = llm.generate([prompts(1)[0]] * 4, greedy, lora_request=asked, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 4


def test_the_prefix_cache_keeps_adapters_apart(home: Home) -> None:
    prompt, greedy = prompts(1, 40)[0] * 2, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(home.base("llama")) as llm:
        for _ in range(2):
            found = [
                llm.generate([prompt], greedy, lora_request=home.request("llama", name), use_tqdm=False)[0]
                for name in (None, "small", "large")
            ]
            cached = [output.num_cached_tokens for output in found]
        first = (len(prompt) - 1) // 8 * 8
        assert cached == [first] * 3
        assert llm.remove_lora(1)
        again = llm.generate([prompt], greedy, lora_request=home.request("llama", "small"), use_tqdm=False)
        assert again[0].num_cached_tokens == 0, "it was removed meanwhile: another adapter may have its id"


def test_with_an_fp8_cache_adapters_compute_what_merged_weights_do(home: Home, tmp_path: Path) -> None:
    """But for keys and values that lie between two numbers of eight bits, and are rounded otherwise."""
    fp8 = {"kv_cache_dtype": "fp8", "logprobs_mode": "raw_logits"}
    names = mixed(4, (None, "small"))
    with open_llm(home.base("llama"), max_num_batched_tokens=24, **fp8) as llm:
        asked = [home.request("llama", name) for name in names]
        outputs = llm.generate(prompts(4), LOGITS, lora_request=asked, use_tqdm=False)
        again = llm.generate(prompts(4)[::-1], LOGITS, lora_request=asked[::-1], use_tqdm=False)[::-1]
    for name, prompt, output, cached in zip(names, prompts(4), outputs, again, strict=True):
        assert cached.outputs[0].token_ids == output.outputs[0].token_ids
        assert cached.num_cached_tokens >= 16
        deepcopy(home.oracle("llama", name)).float().save_pretrained(tmp_path / str(name))
        plain = {"device": "cpu", "block_size": 8, "skip_tokenizer_init": True, **fp8}
        with LLM(str(tmp_path / str(name)), **plain) as llm:
            (expected,) = llm.generate([prompt], LOGITS, use_tqdm=False)
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        found, other = (logits_of(each) for each in (output, expected))
        assert (found - other).abs().median() < 1e-4
        assert (found - other).abs().max() < 0.2 * other.std()


def logits_of(output: Any) -> torch.Tensor:
    """[tokens, vocab]"""
    return torch.tensor(
        [[entry[token].logprob for token in range(tiny.VOCAB)] for entry in output.outputs[0].logprobs]
    )


def test_prompt_logprobs_are_those_of_merged_weights(home: Home) -> None:
    names = mixed(4)
    asked = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=-1)
    with open_llm(home.base("qwen2"), max_num_batched_tokens=16) as llm:
        requests = [home.request("qwen2", name) for name in names]
        outputs = llm.generate(prompts(4), asked, lora_request=requests, use_tqdm=False)
    for name, prompt, output in zip(names, prompts(4), outputs, strict=True):
        rows = tiny.logits(home.oracle("qwen2", name), prompt).log_softmax(-1)
        for entry, row in zip(output.prompt_logprobs[1:], rows, strict=False):
            found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
            torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


def test_the_same_tokens_whatever_shares_the_batch(home: Home) -> None:
    """Sampled ones, alone and among others, in an engine with one slot and in one with three."""
    params = [
        SamplingParams(temperature=0.9, seed=place, max_tokens=COUNT, ignore_eos=True) for place in range(9)
    ]
    asked = [home.request("llama", name) for name in mixed(9)]
    found = []
    for settings in ({}, {"max_loras": 1}, {"max_num_seqs": 1}):
        with open_llm(home.base("llama"), **settings) as llm:
            outputs = llm.generate(prompts(9), params, lora_request=asked, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
    assert found[0] == found[1] == found[2]


def test_beams_streams_chats_and_children_have_their_adapter(home: Home) -> None:
    prompt, request = prompts(1)[0], home.request("llama", "large")
    oracle = home.oracle("llama", "large")
    expected = tiny.greedy(oracle, prompt, 4)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with open_llm(home.base("llama")) as llm:
        streamed = [
            i for out in llm.stream(prompt, greedy, lora_request=request) for i in out.outputs[0].token_ids
        ]
        assert streamed[: len(expected)] == expected
        params = BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True)
        (found,) = llm.beam_search([prompt], params, lora_request=request)
        assert found.sequences[0].tokens[len(prompt) :][: len(expected)] == expected
        two = SamplingParams(temperature=0, n=2, max_tokens=4, ignore_eos=True)
        (output,) = llm.generate([prompt], two, lora_request=request, use_tqdm=False)
        assert [list(c.token_ids)[: len(expected)] for c in output.outputs] == [expected] * 2


def test_threads_add_one_adapter_once(home: Home) -> None:
    with open_llm(home.base("llama")) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        request, found = home.request("llama", "small"), []

        def ask() -> None:
            found.append(llm.generate([[5, 6]], greedy, lora_request=request, use_tqdm=False)[0])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(output.outputs[0].token_ids) for output in found}) == 1
        assert llm.list_loras() == {1}
