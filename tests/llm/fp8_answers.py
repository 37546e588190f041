"""What engines with an FP8 cache are asked, and when two answers are the same."""

from __future__ import annotations

import random

import pytest

from tests.llm import tiny
from workbench import LLM, SamplingParams

FORMATS = ["fp8", "fp8_e5m2", "fp8_per_token_head"]
COUNT = 8
# Blocks of 8 that hold the longest request, and not all that want to run.
SCARCE = {"llama": 12, "mistral": 9, "qwen2": 18, "qwen3": 12}
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=3)


def prompts(count: int = 5) -> list[list[int]]:
    dice = random.Random(5)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(24)]
    return [shared + [dice.randrange(3, tiny.VOCAB) for _ in range(1 + 9 * i)] for i in range(count)]


Answers = list[tuple[list[int], list[dict[int, float]]]]


def answers(llm: LLM, given: list[list[int]]) -> Answers:
    outputs = llm.generate(given, GREEDY, use_tqdm=False)
    return [
        (
            list(output.outputs[0].token_ids),
            [{i: v.logprob for i, v in line.items()} for line in output.outputs[0].logprobs],
        )
        for output in outputs
    ]


def assert_same(found: Answers, expected: Answers) -> None:
    """The same tokens, and logprobs that differ by float32's roundings alone: one FP8 step is 1e-2."""
    for (ids, lines), (expected_ids, expected_lines) in zip(found, expected, strict=True):
        assert ids == expected_ids
        for line, expected_line in zip(lines, expected_lines, strict=True):
            assert line == pytest.approx(expected_line, abs=1e-4)
