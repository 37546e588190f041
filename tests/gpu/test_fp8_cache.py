"""On a GPU, an FP8 cache: tokens depend neither on how a step was computed nor on the device."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.test_eager import COUNT, PROMPTS
from tests.llm.fp8_answers import FORMATS
from workbench import LLM, SamplingParams

pytestmark = pytest.mark.gpu

WAYS: dict[str, dict[str, Any]] = {
    "overlapped": {"async_scheduling": True},
    "eager": {"enforce_eager": True},
    "chunked": {"max_num_batched_tokens": 16},
    "few blocks": {"num_gpu_blocks_override": 14},
    "without cache": {"enable_prefix_caching": False},
}


def tokens(device: str, **settings: Any) -> list[list[int]]:
    given = {"max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 28, "async_scheduling": False} | settings
    if "num_gpu_blocks_override" in given:
        del given["kv_cache_memory_bytes"]
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    with LLM(device=device, dtype="float32", **given) as llm:
        return [o.outputs[0].token_ids for o in llm.generate(PROMPTS, params, use_tqdm=False)]


@pytest.mark.parametrize("kv", FORMATS)
def test_tokens_are_those_of_the_emulation_however_they_are_computed(kv: str) -> None:
    expected = tokens("cpu", kv_cache_dtype=kv)
    assert tokens("cuda", kv_cache_dtype=kv) == expected
    for way, settings in WAYS.items():
        assert tokens("cuda", kv_cache_dtype=kv, **settings) == expected, way
