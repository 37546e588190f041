"""What tests ask of a tiny model, and whether the answer is transformers'."""

from __future__ import annotations

import random

import torch

from tests.llm import tiny
from tests.llm.conftest import Models
from workbench import LLM, SamplingParams

COUNT = 10


def prompts(count: int = 6) -> list[list[int]]:
    dice = random.Random(5)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(6 + 8 * i)] for i in range(count)]


def greedy(**options) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": COUNT, "ignore_eos": True} | options)


def is_right(models: Models, prompt: list[int], tokens: list[int], family: str = "llama") -> bool:
    expected = models.greedy(prompt, COUNT, family)
    return len(tokens) == COUNT and tokens[: len(expected)] == expected


def is_rank(rank: int, row: torch.Tensor, token_id: int) -> bool:
    """1 + the number of larger values, but for those that float32 cannot tell apart."""
    close = 2e-5
    return (
        1 + int((row > row[token_id] + close).sum()) <= rank <= 1 + int((row > row[token_id] - close).sum())
    )


def compile_grammars(llm: LLM, params: list[SamplingParams]) -> None:
    """Wait for them, so that who is constrained is admitted in its turn, however slow the machine is."""
    for asked in params:
        if asked.structured_outputs is not None:
            llm._parts.grammars.compile(asked.structured_outputs)


async def collect(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    return [token async for out in llm.astream(prompt, params) for token in out.outputs[0].token_ids]
