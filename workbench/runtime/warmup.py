"""Steps of no request, to be run before the first one: whatever is compiled, loaded or chosen at first use.

They touch the null block alone, and rows that are free again afterwards. Knows plans, and nothing of kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from workbench.engine.plan import Addition, Growth, Scoring, StepPlan
from workbench.params import SamplingParams

FEWEST = 64  # tokens of the smallest prompt; small steps run what graphs run, if not graphs themselves

PLAIN = SamplingParams(temperature=1.0)
# Processed logprobs of logits that nothing adjusts come by a form of their kernel of their own.
TOLD = SamplingParams(temperature=1.0, logprobs=1)
# Everything that makes a row more than a draw from the model's logits.
SPECIAL = SamplingParams(
    temperature=0.8,
    top_k=5,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    frequency_penalty=0.1,
    presence_penalty=0.1,
    min_tokens=2,
    logit_bias={0: 1.0},
    logprobs=1,
    prompt_logprobs=1,
)


def warm_plans(
    rows: int, tokens: int, length: int, block_size: int, groups: int, adapted: bool = False
) -> Iterator[StepPlan]:
    """One prompt of every order of magnitude; many rows at once; rows that ask for more than a token.

    Args:
        rows, tokens, length: most requests, tokens of a step, and tokens of a request.
        groups: KV groups.
        adapted: everybody has the adapter of the first slot.
    """
    longest = min(tokens, length - 1)
    counts = [longest]
    while counts[-1] // 2 >= FEWEST:
        counts.append(counts[-1] // 2)
    steps = [(1, count, PLAIN) for count in counts]
    many = min(rows, tokens // 2)
    if many > 1:
        steps += [(many, min(tokens // many, longest), params) for params in (PLAIN, SPECIAL)]
    steps += [(1, 2, SPECIAL), (1, 2, TOLD)]
    for index, (lines, count, params) in enumerate(steps):
        yield _plan(index, lines, count, params, block_size, groups, 0 if adapted else None)


def _plan(
    index: int,
    lines: int,
    count: int,
    params: SamplingParams,
    block_size: int,
    groups: int,
    adapter: int | None,
) -> StepPlan:
    """`lines` prompts of `count` tokens; the first of them with `params`."""
    ids = np.zeros(count, np.int32)
    blocks = (np.zeros(-(-count // block_size), np.int32),) * groups
    added = tuple(
        Addition(row, f"warm-{row}", ids, count, blocks, PLAIN if row else params, row, (0,), adapter)
        for row in range(lines)
    )
    nothing = np.empty(0, np.int32)
    return StepPlan(
        index=index,
        budget=lines * count,
        rows=np.arange(lines, dtype=np.int32),
        starts=np.zeros(lines, np.int32),
        counts=np.full(lines, count, np.int32),
        samples=np.ones(lines, bool),
        removed=nothing,
        added=added,
        grown=(Growth(nothing, nothing, nothing),) * groups,
        scoring=_scoring(count) if params.prompt_logprobs is not None and count > 1 else None,
    )


def _scoring(count: int) -> Scoring:
    """Of the first prompt, every token that something predicts."""
    line, first, end = np.array([[0], [1], [count]], np.int32)
    return Scoring(line, first, end)
