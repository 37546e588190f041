"""What tests ask of a tiny model, and whether the answer is transformers'."""

from __future__ import annotations

import random

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


async def collect(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    return [token async for out in llm.astream(prompt, params) for token in out.outputs[0].token_ids]
