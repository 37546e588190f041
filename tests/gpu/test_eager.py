"""On a GPU without Triton, in plain torch: the embedded model's tokens are transformers'."""

from __future__ import annotations

import gc

import pytest
import torch

from workbench import LLM, SamplingParams
from workbench.models import backend
from workbench.models.zoo import registry

pytestmark = pytest.mark.gpu

PROMPTS = [
    "Once upon a time, there was a little fox who lived in a village by the river.",
    "Once upon a time, there was a little fox who lived in a village by the sea. One day",
    "Sort ascending: 171, 0, 708\nAnswer:",
    "The owl",
]
COUNT = 48


@pytest.fixture(autouse=True)
def _plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda device: False)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Greedy tokens of transformers in float32, TF32 off."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.backends.cuda.matmul.allow_tf32 = False
    folder = registry.path(registry.DEFAULT)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer.encode(prompt)], device="cuda")
            done = model.generate(ids, max_new_tokens=COUNT, do_sample=False, eos_token_id=-1, pad_token_id=0)
            answers.append(done[0, ids.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("budget", [16, 4096])
@pytest.mark.parametrize("blocks", [None, 14])
def test_greedy_tokens_equal_transformers(expected, async_scheduling, budget, blocks):
    settings = {"max_num_batched_tokens": budget, "async_scheduling": async_scheduling}
    settings |= {"kv_cache_memory_bytes": 1 << 28} if blocks is None else {"num_gpu_blocks_override": blocks}
    with LLM(device="cuda", dtype="float32", **settings) as llm:
        params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert blocks is None or sum(output.metrics.num_preemptions for output in outputs) > 0


def test_open_and_close_leave_gpu_memory_where_it_was():
    def once() -> int:
        with LLM(device="cuda", kv_cache_memory_bytes=1 << 28) as llm:
            llm.generate("The owl", SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
        gc.collect()
        return torch.cuda.memory_allocated()

    before = once()
    assert [once() for _ in range(10)] == [before] * 10
