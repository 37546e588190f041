"""Once an engine is open nothing is compiled: no request waits for a compiler, whatever it asks for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from workbench import LLM, SamplingParams, StructuredOutputsParams

pytestmark = pytest.mark.gpu


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Names of kernels that were met in a form that this process had not met before."""
    import triton

    names: list[str] = []

    def note(**found: Any) -> None:
        names.append(found["repr"])

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = note
    yield names
    triton.knobs.runtime.jit_cache_hook = before


def asked(dice: random.Random) -> SamplingParams:
    """Something of everything."""
    options: dict[str, Any] = dice.choice(
        [
            {"temperature": 0},
            {"temperature": 1.0},
            {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 3},
            {"temperature": 0.7, "min_p": 0.05, "presence_penalty": 1.0, "repetition_penalty": 1.2},
            {"temperature": 1.1, "logit_bias": {7: 2.0}, "min_tokens": 4, "logprobs": 3},
            {"temperature": 0.9, "allowed_token_ids": list(range(5, 60)), "logprobs": 0},
            {"temperature": 1.0, "bad_words": ["the fox", "owl"]},
            {"temperature": 0, "prompt_logprobs": 2, "logprobs": -1},
            {"structured_outputs": StructuredOutputsParams(regex="[a-z ]{3,20}"), "ignore_eos": False},
        ]
    )
    return SamplingParams(**{"max_tokens": dice.randrange(4, 40), "ignore_eos": True} | options)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_nothing_is_compiled_while_requests_run(compiled: list[str], mode: str) -> None:
    dice = random.Random(4)
    settings: dict[str, Any] = {"kv_cache_memory_bytes": 1 << 30, "max_num_seqs": 300}
    with LLM(device="cuda", logprobs_mode=mode, **settings) as llm:
        assert compiled, "the hook sees nothing, and this test could not fail"
        compiled.clear()
        shared = [dice.randrange(3, 3000) for _ in range(400)]
        for count in (1, 2, 3, 7, 30, 131, 133, 299, 400):
            lengths = [dice.choice([1, 2, 9, 17, 65, 130, 500, 900]) for _ in range(count)]
            prompts = [[dice.randrange(3, 3000) for _ in range(length)] for length in lengths]
            llm.generate(prompts, [asked(dice) for _ in prompts], use_tqdm=False)
            llm.generate([shared + prompt[:50] for prompt in prompts], asked(dice), use_tqdm=False)
        assert compiled == []
