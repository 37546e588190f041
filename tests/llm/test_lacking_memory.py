"""What is said when the engine cannot be set up: memory is blamed only where it lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.llm import tiny
from workbench import LLM, build
from workbench.runtime.memory import MemoryBudget


def open_with(failure: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(build, "make_runner", fail)
    tiny.write_model("llama", folder)
    LLM(str(folder), device="cpu", skip_tokenizer_init=True, num_gpu_blocks_override=600)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_lacks_is_named_with_what_to_lower(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="no memory for 600 KV blocks.*max_num_seqs"):
        open_with(failure, tmp_path, monkeypatch)


def test_a_kernel_that_fails_is_not_blamed_on_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        open_with(fault, tmp_path, monkeypatch)


def test_what_the_memory_goes_to_is_shown_with_the_tokens_that_fit(tmp_path: Path) -> None:
    tiny.write_model("llama", tmp_path)
    with LLM(str(tmp_path), device="cpu", skip_tokenizer_init=True, num_gpu_blocks_override=600) as llm:
        assert f"600 blocks of 16, {600 * 16} tokens" in llm.memory
        assert f"{llm.config.kv_cache_bytes / 2**30:.2f} GiB" in llm.memory
    assert "600 blocks" in llm.memory, "also when it is closed, as the config"


def test_a_gpus_memory_adds_up() -> None:
    gib = 1 << 30
    budget = MemoryBudget(100 * gib, 0.9, 2 * gib, 16 * gib, 3 * gib, gib)
    assert budget.kv_cache == (90 - 2 - 16 - 3 - 1) * gib
    figures = [float(line.split()[-2]) for line in budget.lines()]
    assert figures[1] - sum(figures[2:-1]) == figures[-1] == 68.0
