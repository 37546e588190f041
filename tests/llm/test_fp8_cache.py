"""An FP8 KV cache in an engine: tokens depend on nothing but their own prompt."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from transformers import DynamicCache

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from tests.llm.fp8_answers import FORMATS, SCARCE, answers, assert_same, prompts


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_tokens_do_not_depend_on_chunks_the_cache_or_the_company(
    open_llm: Open, family: str, name: str
) -> None:
    given = prompts()
    settings = {"kv_cache_dtype": name, "block_size": 8, "max_model_len": 96, "max_num_seqs": 8}
    llm = open_llm(family, **settings)
    together = answers(llm, given)
    cached = answers(llm, given)
    assert llm.trace.requests["cached_tokens"].iloc[-1] > 0
    assert_same(cached, together)
    llm.reset_prefix_cache()
    alone = [answers(llm, [prompt])[0] for prompt in given]
    assert_same(alone, together)
    for budget, overlapped in product([8, 24], [False, True]):
        chunked = open_llm(family, max_num_batched_tokens=budget, async_scheduling=overlapped, **settings)
        assert_same(answers(chunked, given), together)
    scarce = {"max_model_len": 72, "num_gpu_blocks_override": SCARCE[family]}
    tight = open_llm(family, **settings | scarce)
    assert_same(answers(tight, given), together)
    assert tight.trace.requests["preemptions"].sum() > 0


class Rounding(DynamicCache):
    """transformers' cache, whose keys and values go through torch's FP8 cast whenever they are read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def update(self, *args, **options) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(*args, **options)
        return self._rounded(keys), self._rounded(values)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        if self._name != "fp8_per_token_head":
            return x.to(torch.float8_e5m2 if "e5m2" in self._name else torch.float8_e4m3fn).float()
        scale = torch.exp2((x.abs().amax(-1, keepdim=True) / 448).log2().ceil())
        return (x / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", FORMATS)
def test_logprobs_are_those_of_transformers_over_rounded_keys_and_values(
    models: Models, open_llm: Open, family: str, name: str
) -> None:
    given = prompts()
    found = answers(open_llm(family, kv_cache_dtype=name, max_num_batched_tokens=16, max_num_seqs=4), given)
    for prompt, (ids, lines) in zip(given, found, strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([[*prompt, *ids]])
            logits = models.oracle(family)(tokens, past_key_values=Rounding(name), use_cache=True).logits[0]
        rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
        assert ids == rows.argmax(-1).tolist()
        for line, row in zip(lines, rows, strict=True):
            # A number near the middle of two may go either way: once, 3e-4. Unrounded keys: up to 1.4.
            assert line == pytest.approx({i: float(row[i]) for i in line}, abs=2e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_what_others_left_behind_does_not_spread(open_llm: Open, name: str) -> None:
    """Every block that nobody holds is full of NaN, as after a request whose activations overflowed."""
    expected = answers(open_llm("qwen2", kv_cache_dtype=name), prompts())
    llm = open_llm("qwen2", kv_cache_dtype=name)
    for tensor in llm._parts.store._tensors:
        tensor.view(torch.uint8)[:, :, 1:] = 0x7F
    assert_same(answers(llm, prompts()), expected)


def test_the_same_memory_holds_twice_the_tokens(open_llm: Open) -> None:
    memory = 1 << 20
    plain = open_llm(dtype="bfloat16", kv_cache_memory_bytes=memory, max_num_seqs=8)
    halved = open_llm(dtype="bfloat16", kv_cache_memory_bytes=memory, max_num_seqs=8, kv_cache_dtype="fp8")
    assert halved.config.num_cache_tokens == 2 * plain.config.num_cache_tokens
    for llm in (plain, halved):
        held = sum(t.numel() * t.element_size() for t in llm._parts.store._tensors)
        blocks = llm.config.num_blocks
        assert held * blocks // (blocks + 1) == llm.config.kv_cache_bytes == memory


def test_memory_says_what_is_stored_how(open_llm: Open) -> None:
    assert "stored as float32" in open_llm().memory
    llm = open_llm(kv_cache_dtype="fp8", kv_cache_dtype_skip_layers=["1"])
    assert "stored as fp8_e4m3; layers 1: float32, scales: 1.0" in llm.memory
    assert (llm.config.kv_cache_dtype, llm.config.kv_scales) == ("fp8_e4m3; layers 1: float32", "1.0")
