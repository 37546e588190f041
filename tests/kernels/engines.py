"""Engines of tiny models whose steps the kernels compute, where there is a GPU and where there is none."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from tests.llm import tiny
from workbench import LLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def prompts(count: int) -> list[list[int]]:
    dice = random.Random(3)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(9)]
    return [shared + [dice.randrange(3, tiny.VOCAB) for _ in range(1 + 3 * i)] for i in range(count)]


def open_llm(folder: Path, **settings: Any) -> LLM:
    plain: dict[str, Any] = {
        "max_model_len": 96,
        "max_num_seqs": 4,
        "num_gpu_blocks_override": 48,
        "skip_tokenizer_init": True,
    }
    return LLM(str(folder), device=DEVICE, dtype="float32", block_size=8, **plain | settings)
