"""The embedded model, under every way of scheduling, generates transformers' tokens."""

from __future__ import annotations

import pytest
import torch

from workbench import LLM, SamplingParams
from workbench.models.zoo import registry

PROMPTS = [
    "Once upon a time, there was a little fox who lived in a village by the river.",
    "Once upon a time, there was a little fox who lived in a village by the sea. One day",
    "Sort ascending: 171, 0, 708, 44, 12\nAnswer:",
    "The owl",
    "Pairs:\n- K4-76: 8485\n- U1-12: 30\n- C9-44: 179\n- M9-91: 962\n- X9-40: 6659\n\nValue of C9-44:",
]
COUNT = 20


@pytest.fixture(scope="module")
def reference():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = registry.path(registry.DEFAULT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def expected(reference) -> list[list[int]]:
    model, tokenizer = reference
    answers = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer.encode(prompt)])
            done = model.generate(ids, max_new_tokens=COUNT, do_sample=False, eos_token_id=-1, pad_token_id=0)
            answers.append(done[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("budget", [16, 64, 512, None])
@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("blocks", [None, 9])
@pytest.mark.parametrize("overlapped", [False, True])
def test_greedy_tokens_equal_transformers(expected, budget, caching, blocks, overlapped):
    settings = {
        "max_num_batched_tokens": budget,
        "enable_prefix_caching": caching,
        "num_gpu_blocks_override": blocks,
        "async_scheduling": overlapped,
    }
    with LLM(device="cpu", dtype="float32", **settings) as llm:
        params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert (sum(output.metrics.num_preemptions for output in outputs) > 0) == (blocks is not None)


def test_logits_equal_transformers(reference):
    model, tokenizer = reference
    with LLM(device="cpu", dtype="float32", logprobs_mode="raw_logits") as llm:
        params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=20)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        answer = output.outputs[0]
        ids = torch.tensor([tokenizer.encode(prompt) + answer.token_ids])
        with torch.inference_mode():
            logits = model(ids).logits[0, -len(answer.token_ids) - 1 : -1]
        for row, entry in zip(logits, answer.logprobs, strict=True):
            for token_id, found in entry.items():
                assert found.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
