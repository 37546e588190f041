"""A GPU whose memory does not suffice: what lacks is said with its figures, and nothing stays behind."""

from __future__ import annotations

import gc

import pytest
import torch

from workbench import LLM
from workbench.runtime import memory

pytestmark = pytest.mark.gpu


def held() -> int:
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


@pytest.fixture(autouse=True)
def _cuda_is_set_up() -> None:
    with LLM(device="cuda", kv_cache_memory_bytes=1 << 28, max_num_seqs=4):
        pass  # what CUDA keeps for itself is there from here on


def test_no_room_for_the_cache_says_what_to_raise_and_by_how_much() -> None:
    before = held()
    with pytest.raises(
        ValueError, match=r"raise gpu_memory_utilization \([\d.]+ GiB needed, 0\.00 GiB left\)"
    ):
        LLM(device="cuda", gpu_memory_utilization=0.001, max_model_len=1024)
    assert abs(held() - before) <= 1 << 20


def test_memory_that_runs_out_while_warming_up_is_told_with_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The budget is made to promise 8 GiB more than the GPU has."""
    before = held()
    total = torch.cuda.get_device_properties(0).total_memory
    monkeypatch.setattr(memory, "GRAPHS", -(total // 10) - (8 << 30))
    with pytest.raises(
        ValueError, match=r"(?s)max_num_seqs=1024.*gpu_memory_utilization \(to 0\.85.*KV cache"
    ):
        LLM(device="cuda", max_num_seqs=1024)
    assert abs(held() - before) <= 1 << 20
