"""What the kernels' runner keeps on the device: as much as was said; no row has what another asked for."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from workbench.kernels.attention.reference import Layout

from tests.llm import tiny
from workbench import LLM, SamplingParams
from workbench.engine.plan import Addition, StepPlan
from workbench.models import backend
from workbench.models.spec import read_spec
from workbench.runtime.assembly import scratch_bytes
from workbench.runtime.device_batch import DeviceBatch
from workbench.runtime.kernel_step import KernelStep
from workbench.runtime.pinned import Pinned

VOCAB = 16


def entering(row: int, params: SamplingParams) -> Addition:
    tokens = np.arange(3, dtype=np.int32)
    return Addition(row, f"r{row}", tokens, 3, (np.array([1], np.int32),), params, 0, ())


def decodes(rows: int) -> StepPlan:
    places, each = np.arange(rows, dtype=np.int32), np.ones(rows, np.int32)
    return StepPlan(0, rows, places, places, each, each > 0, places[:0], (), ())


class Counted(TorchDispatchMode):
    """Counts what is asked of torch."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_is_forgotten_without_the_device_and_its_rows_ask_for_nothing_afterwards(
    device: torch.device,
) -> None:
    """After a fault of the device every call into it fails, and the engine still has requests to end."""
    batch = DeviceBatch(4, 32, (Layout(1, 1, 8, 8, None),), VOCAB, Pinned(device, 1))
    biased = SamplingParams(logit_bias={5: 3.0})
    batch._enter([entering(0, biased), entering(1, biased)])
    with Counted() as asked:
        batch.clear()
    assert asked.count == 0
    batch._enter([entering(1, SamplingParams()), entering(2, biased)])
    rows = torch.arange(3, dtype=torch.int32, device=device)
    logits = torch.zeros((3, VOCAB), device=device)
    adjusted = batch.adjuster.adjust(logits, rows, rows, batch.tokens, decodes(3))
    slots = adjusted.slots.tolist()
    assert slots[:2] == [-1, -1]
    assert slots[2] >= 0
    assert adjusted.values[slots[2]].tolist() == [3.0 if token == 5 else 0.0 for token in range(VOCAB)]


def held() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    storages = {t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_a_runner_takes_the_memory_that_was_set_aside_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two KV groups, and tables as long as the context: blocks of one token."""
    monkeypatch.setattr(backend, "has_kernels", lambda device: True)
    folder = tiny.write_model("qwen2", tmp_path / "qwen2")
    rows, tokens, length = 64, 4096, 2048
    taken: list[int] = []
    make_batch, make_step = DeviceBatch.__init__, KernelStep.__init__

    def measured(self: DeviceBatch, *args: object) -> None:
        taken.append(-held())
        make_batch(self, *args)  # type: ignore[arg-type]

    def measured_too(self: KernelStep, *args: object) -> None:
        make_step(self, *args)  # type: ignore[arg-type]
        taken.append(held())

    monkeypatch.setattr(DeviceBatch, "__init__", measured)
    monkeypatch.setattr(KernelStep, "__init__", measured_too)
    settings = {"max_num_seqs": rows, "max_num_batched_tokens": tokens, "max_model_len": length}
    with LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        block_size=1,
        skip_tokenizer_init=True,
        num_gpu_blocks_override=5000,
        **settings,
    ):
        pass
    said = scratch_bytes(read_spec(folder, None), rows, tokens, length, 1, torch.float32)
    assert sum(taken) == pytest.approx(said, rel=0.02)
