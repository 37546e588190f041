"""Logprobs, ranks and best tokens: what the spec's cases leave open."""

from __future__ import annotations

import pytest
import torch
from workbench.kernels.logprobs.kernel import logprobs

NEVER = float("-inf")


def test_of_equal_logits_the_lower_id_is_listed_first_and_ranks_count_larger_ones_only(device: torch.device):
    logits = torch.zeros(2, 600, device=device).half()
    logits[0, [500, 130, 3]] = 1
    logits[1, [131, 130]] = 2
    found = logprobs(logits, torch.tensor([500, 599], device=device), 5)
    assert found.top_ids.tolist() == [[3, 130, 500, 0, 1], [130, 131, 0, 1, 2]]
    assert found.ranks.tolist() == [1, 3]
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(found.top_logprobs.double(), exact.gather(-1, found.top_ids.long()))


def test_as_many_best_tokens_as_the_vocabulary_has_are_a_sort(device: torch.device):
    logits = torch.randn(2, 150, generator=torch.Generator().manual_seed(0)).to(device)
    logits[0, 10:20] = NEVER
    found = logprobs(logits, torch.tensor([12, 3], device=device), 150)
    wanted = logits.double().log_softmax(-1).sort(descending=True, stable=True)
    assert found.top_ids.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(found.top_logprobs.double(), wanted.values, rtol=1e-6, atol=1e-6)
    assert found.sampled[0] == NEVER
    assert found.ranks[0] == 141


def test_logits_are_given_as_they_are_on_request(device: torch.device):
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)).to(device).half()
    chosen = torch.tensor([1, 2, 3], device=device)
    found = logprobs(logits, chosen, 2, as_logits=True)
    assert torch.equal(found.sampled, logits.float().gather(-1, chosen[:, None])[:, 0])
    assert torch.equal(found.top_logprobs, logits.float().topk(2).values)


def test_large_logits_lose_no_digits_to_their_norm(device: torch.device):
    logits = torch.randn(2, 400, generator=torch.Generator().manual_seed(0)).to(device) + 5000
    found = logprobs(logits, torch.tensor([1, 2], device=device), 3)
    exact = logits.double().log_softmax(-1)
    torch.testing.assert_close(found.top_logprobs.double(), exact.topk(3).values, rtol=1e-6, atol=1e-6)


def test_more_best_tokens_than_the_vocabulary_has_are_refused():
    with pytest.raises(ValueError, match="21 best tokens of a vocabulary of 20"):
        logprobs(torch.zeros(1, 20), torch.zeros(1, dtype=torch.int64), 21)


@pytest.mark.gpu
def test_a_slice_of_a_prompt_takes_little_beside_its_logits():
    logits = torch.randn(2048, 151_936, device="cuda", dtype=torch.bfloat16)
    chosen = torch.zeros(2048, dtype=torch.int64, device="cuda")
    logprobs(logits, chosen, 20)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logprobs(logits, chosen, 20)
    assert torch.cuda.max_memory_allocated() - before < 16 * 2**20
