"""Drafts beside adapters: every row is verified with its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.llm.drafters import TestDrafter, draft_by
from tests.lora.home import Home, mixed, open_llm, prompts
from workbench import LLM, SamplingParams

COUNT = 12
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
SEEDED = SamplingParams(temperature=1.0, seed=4, max_tokens=COUNT, ignore_eos=True)


@pytest.mark.parametrize("method", ["ngram", "draft_model", "adversarial"])
def test_with_adapters_the_output_is_that_of_no_speculation(home: Home, method: str) -> None:
    asked = [home.request("llama", name) for name in mixed(8)]
    given = [prompt + prompt[-6:] for prompt in prompts(8)]
    params = [GREEDY if place % 3 else SEEDED for place in range(8)]

    def said(llm: LLM) -> list[list[int]]:
        outputs = llm.generate(given, params, lora_request=asked, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    with open_llm(home.base("llama")) as llm:
        expected = said(llm)
    config: dict[str, Any] = {"method": "ngram", "num_speculative_tokens": 3, "adaptive": False}
    if method == "draft_model":  # it has no adapters, and is right where the request has none
        config |= {"method": method, "model": str(home.base("llama"))}
    with open_llm(home.base("llama"), speculative_config=config, max_num_batched_tokens=40) as llm:
        if method == "adversarial":
            whole = [prompt + ids for prompt, ids in zip(given, expected, strict=True)]
            draft_by(llm, TestDrafter(method, whole))
        assert said(llm) == expected
        counts = llm._engine.scheduler.counts
    assert counts.draft_tokens > 10
    assert counts.accepted_tokens > 8 or method == "ngram"
