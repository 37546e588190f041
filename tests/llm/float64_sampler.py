"""The sampler's order, written down once more in float64: what a token is drawn from, given what asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from workbench import SamplingParams

NEVER = float("-inf")
BAD = ["the", "bird sang", "old river"]

# Each alone, then all together; every one that takes part changes the distribution.
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "allowed ids": {"allowed_token_ids": [5, 9, 17, *range(100, 160)]},
    "bad words": {"bad_words": BAD},
    "min_tokens": {"min_tokens": 3, "stop_token_ids": [7, 8, 9, 60]},
    "logit_bias": {"logit_bias": {7: 3.5, 9: -5.0, 200: 8.0}},
    "repetition": {"repetition_penalty": 1.4},
    "frequency": {"frequency_penalty": 1.1},
    "presence": {"presence_penalty": -1.2},
    "temperature": {"temperature": 0.6},
    "min_p": {"min_p": 0.05},
    "top_k": {"top_k": 17},
    "top_p": {"top_p": 0.8},
    "greedy": {"temperature": 0.0, "repetition_penalty": 1.3, "logit_bias": {7: 3.0}},
    "all": {
        "allowed_token_ids": list(range(3, 250)),
        "bad_words": BAD,
        "min_tokens": 2,
        "stop_token_ids": [7, 60, 61],
        "logit_bias": {9: 4.0, 60: 5.0, 280: 50.0, 30: -3.0},
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.6,
        "presence_penalty": 0.3,
        "temperature": 0.8,
        "min_p": 0.002,
        "top_k": 60,
        "top_p": 0.9,
    },
}


def processed(
    logits: Tensor,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    bad_words: Sequence[Sequence[int]],
    eos: int,
) -> Tensor:
    """[vocab] float64: the model's logits, processed for the token that follows `output`."""
    x = logits.double().clone()
    if params.allowed_token_ids is not None:
        forbidden = [i for i in range(len(x)) if i not in params.allowed_token_ids]
        x[forbidden] = NEVER
    for *head, last in bad_words:
        if len(output) >= len(head) and list(output[len(output) - len(head) :]) == head:
            x[last] = NEVER
    if len(output) < params.min_tokens:
        x[[*([] if params.ignore_eos else [eos]), *params.stop_token_ids]] = NEVER
    for token_id, bias in (params.logit_bias or {}).items():
        x[token_id] += bias
    for token_id in {*prompt, *output}:
        penalty = params.repetition_penalty
        x[token_id] = x[token_id] / penalty if x[token_id] > 0 else x[token_id] * penalty
    for token_id in set(output):
        x[token_id] -= params.frequency_penalty * list(output).count(token_id) + params.presence_penalty
    return x if params.is_greedy else _cut(x / params.temperature, params)


def _cut(x: Tensor, params: SamplingParams) -> Tensor:
    p = x.softmax(-1)
    x[p < params.min_p * p.max()] = NEVER
    order = x.argsort(descending=True).tolist()
    if params.top_k:
        x[order[params.top_k :]] = NEVER
    p, reached = x.softmax(-1), 0.0
    for token_id in order:
        if reached >= params.top_p and params.top_p < 1:
            x[token_id] = NEVER
        reached += float(p[token_id])
    return x


def spellings(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Each word at the beginning of a text, and behind a space."""
    return [tokenizer.encode(space + word, add_special_tokens=False) for word in words for space in ("", " ")]
