"""On a GPU, by graphs that verify: the tokens of no speculation, on text that is drafted well."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from workbench import LLM, SamplingParams
from workbench.models.zoo.corpus.tasks import make

pytestmark = pytest.mark.gpu

COUNT = 48
WAYS: dict[str, dict[str, Any]] = {
    "overlapped": {"async_scheduling": True},
    "synchronous": {"async_scheduling": False},
    "eager": {"enforce_eager": True},
    "chunked": {"max_num_batched_tokens": 32},
    "few blocks": {"num_gpu_blocks_override": 36},
}


def asked() -> tuple[list[str], list[SamplingParams]]:
    """Half of them greedy, half drawn with seeds."""
    kinds = ("copy", "rename", "replace")
    prompts = [make("copying", "heldout", 0, index, kinds[index % 3]).prompt for index in range(12)]
    common: dict[str, Any] = {"max_tokens": COUNT, "ignore_eos": True, "logprobs": 1}
    params = [SamplingParams(temperature=index % 2, seed=index, **common) for index in range(12)]
    return prompts, params


def run(**settings: Any) -> tuple[list[list[int]], int]:
    """Token ids of each request, and how many drafts were accepted."""
    given = {"max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 28} | settings
    if "num_gpu_blocks_override" in given:
        del given["kv_cache_memory_bytes"]
    prompts, params = asked()
    with LLM(device="cuda", dtype="float32", max_model_len=512, **given) as llm, llm.trace.record() as trace:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs], int(trace.steps.accepted.sum())


@cache
def plain() -> list[list[int]]:
    return run()[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["ngram", "suffix", "draft_model"])
def test_tokens_are_those_of_no_speculation(method: str, way: str) -> None:
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": 4, "adaptive": False}
    if method == "draft_model":
        config["model"] = "zoo/wren-1m"
    found, accepted = run(speculative_config=config, **WAYS[way])
    assert found == plain()
    assert accepted > 100
