"""Drafts over an FP8 cache: what is verified is rounded like what is decoded."""

from __future__ import annotations

import pytest

from tests.llm.conftest import Models, Open
from tests.llm.drafters import TestDrafter, draft_by
from tests.llm.fp8_answers import FORMATS, answers, assert_same, prompts


@pytest.mark.parametrize("method", ["ngram", "draft_model", "adversarial"])
@pytest.mark.parametrize("name", FORMATS)
def test_over_fp8_the_output_is_that_of_no_speculation(
    models: Models, open_llm: Open, name: str, method: str
) -> None:
    given = [prompt + prompt[-6:] for prompt in prompts(4)]
    settings = {"kv_cache_dtype": name, "block_size": 8, "max_model_len": 96, "max_num_batched_tokens": 40}
    expected = answers(open_llm(**settings), given)
    config = {"method": "ngram", "num_speculative_tokens": 3, "adaptive": False}
    if method == "draft_model":
        config |= {"method": method, "model": str(models.folder())}
    llm = open_llm(**settings, speculative_config=config)
    if method == "adversarial":
        whole = [prompt + ids for prompt, (ids, _) in zip(given, expected, strict=True)]
        draft_by(llm, TestDrafter(method, whole))
    assert_same(answers(llm, given), expected)
    counts = llm._engine.scheduler.counts
    assert counts.draft_tokens > 3
    assert counts.accepted_tokens > 0 or method == "ngram"
