"""Keys and values kept from step to step, and prefixes read once for many rows, change no token."""

from __future__ import annotations

import random

import pytest
import torch
from workbench.kernels.attention.reference import Layout, attend, make_bucket, workspace

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import SamplingParams
from workbench.runtime import contexts as kept_contexts
from workbench.runtime.contexts import Contexts

PREFIX = 40


def family_tree(count: int) -> list[list[int]]:
    """Prompts with a common beginning, and lengths that put them into one bucket."""
    dice = random.Random(11)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(PREFIX)]
    return [shared + [dice.randrange(3, tiny.VOCAB) for _ in range(3 + i % 4)] for i in range(count)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_share_a_prefix_and_decode_together_get_the_tokens_each_gets_alone(
    models: Models, open_llm: Open, monkeypatch: pytest.MonkeyPatch, family: str, kept: bool
) -> None:
    if not kept:
        monkeypatch.setattr(kept_contexts, "MOST_BYTES", 0)
    prompts, count = family_tree(8), 40  # past the slack of the kept contexts, more than once
    llm = open_llm(family, block_size=8)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = models.greedy(prompt, count, family)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


def test_a_row_that_ends_or_arrives_or_is_preempted_disturbs_no_kept_context(
    models: Models, open_llm: Open
) -> None:
    prompts = family_tree(10)
    llm = open_llm(block_size=8, max_model_len=120, max_num_seqs=6, num_gpu_blocks_override=20)
    lengths = [5 + 7 * i for i in range(10)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    with llm.trace.record() as trace:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    assert trace.requests["preemptions"].sum() > 0, "nobody was preempted: a smaller pool is needed"
    for prompt, output, length in zip(prompts, outputs, lengths, strict=True):
        expected = models.greedy(prompt, length)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


def test_a_steady_batch_is_gathered_once_and_appended_to(
    open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kept contexts are for."""
    steps: list[str] = []
    begin = Contexts.begin

    def watched(self: Contexts, inputs) -> None:
        begin(self, inputs)
        kept = self._kept[0]
        steps.append("anew" if kept is None else "kept" if kept.places is not None else "filled")

    monkeypatch.setattr(Contexts, "begin", watched)
    llm = open_llm(block_size=16)
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    llm.generate(family_tree(6), params, use_tqdm=False)
    assert steps.count("kept") > 50, steps


@pytest.mark.parametrize("count", [1, 3])
def test_a_shared_prefix_is_the_same_context_read_in_another_way(count: int) -> None:
    torch.manual_seed(0)
    layout = Layout(heads=6, kv_heads=2, num_blocks=12, block_size=4, window=None)
    cache = torch.randn(2, 2, 12, 4, 8, dtype=torch.float64)
    blocks = torch.tensor([[3, 9, 1, 5], [3, 9, 2, 0], [3, 9, 7, 8], [3, 9, 11, 10]])
    starts = [13, 9, 12, 12]
    query = torch.randn(4 * count, 6, 8, dtype=torch.float64)
    found = []
    for shared in (0, 2):
        bucket = make_bucket(0, starts, count, blocks, layout, shared)
        space = workspace([bucket], cache, cache.dtype)
        out = torch.full((4 * count, 48), float("nan"), dtype=torch.float64)
        found.append(attend(query, cache, [bucket], 0.3, space, out))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)  # softmax is in float32
    # Position by position, in float64.
    for line in range(4 * count):
        request, position = line // count, starts[line // count] + line % count
        slots = [int(blocks[request, p // 4]) * 4 + p % 4 for p in range(position + 1)]
        for head in range(6):
            keys, values = cache[:, head // 3].reshape(2, -1, 8)[:, slots]
            weights = (query[line, head] @ keys.T * 0.3).softmax(-1)
            torch.testing.assert_close(
                found[1][line, head * 8 : head * 8 + 8], weights @ values, rtol=1e-5, atol=1e-6
            )
