"""Adapters by compiled kernels and graphs: float32 logits are those of merged weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.llm import tiny
from tests.lora.adapters import ATTENTION, EVERY, merged, write_adapter
from workbench import LLM, LoRARequest, SamplingParams
from workbench.models.folder import resolve

pytestmark = pytest.mark.gpu

WHERE = (("one", 1, EVERY), ("eight", 8, ATTENTION), ("deep", 64, (*EVERY, "embed_tokens", "lm_head")))


@pytest.mark.parametrize("max_loras", [3, 1])
def test_logits_are_those_of_merged_weights_row_by_row(tmp_path: Path, max_loras: int) -> None:
    """40 requests: lines of their own order, graphs of more lines than the batch, slots that change hands."""
    base = resolve("zoo/wren-8m")  # wren-1m's logits reach 50, where float32 itself is 1e-4 off
    folders = [
        write_adapter(tmp_path / name, tiny.load(base), rank, targets, seed=rank, size=0.005)
        for name, rank, targets in WHERE
    ]
    asked = [None, *(LoRARequest(f.name, n + 1, str(f)) for n, f in enumerate(folders))]
    oracles = [tiny.load(base).double(), *(merged(folder, base) for folder in folders)]
    dice = random.Random(3)
    prompts = [[dice.randrange(3, 1000) for _ in range(9 + 5 * (n % 7))] for n in range(40)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=-1)
    with LLM(
        "zoo/wren-8m", dtype="float32", logprobs_mode="raw_logits", enable_lora=True, max_loras=max_loras,
        max_lora_rank=64, max_num_seqs=64, max_model_len=128, num_gpu_blocks_override=1000,
    ) as llm:  # fmt: skip
        requests = [asked[n % 4] for n in range(40)]
        outputs = llm.generate(prompts, params, lora_request=requests, use_tqdm=False)
        vocab = llm._parts.spec.vocab_size
    for place, output in enumerate(outputs):
        tokens = list(output.outputs[0].token_ids)
        rows = tiny.logits(oracles[place % 4], [*prompts[place], *tokens])[len(prompts[place]) - 1 : -1]
        for entry, row in zip(output.outputs[0].logprobs, rows, strict=True):
            found = torch.tensor([entry[token].logprob for token in range(vocab)]).double()
            torch.testing.assert_close(found, row, rtol=0, atol=1e-4)
