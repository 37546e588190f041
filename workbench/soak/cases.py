"""Requests drawn at random: those that have an answer, and those that must be refused.

A valid case has one answer whatever else goes on: it is greedy or has a seed. Knows no engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from workbench.params import SamplingParams, StructuredOutputsParams
from workbench.soak.settings import MAX_MODEL_LEN

TEXTS = (
    "Once upon a time there was a small robot who lived at the edge of the sea. Every morning it counted",
    "Question: what is 12 plus 30? Answer:",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    '{"name": "Ada", "age": 36, "town": "London"}\n{"name":',
    "Sort these words: pear, apple, fig, plum, date. Sorted:",
    'Ünïcödé, 日本語 and emoji 🙂 are all bytes to a tokenizer, and so are <tags> & "quotes".',
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Bob"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CONSTRAINTS: tuple[Callable[[], StructuredOutputsParams], ...] = (
    lambda: StructuredOutputsParams(choice=["yes", "no", "perhaps not"]),
    lambda: StructuredOutputsParams(regex=r"[a-z]{2,6} [0-9]{1,3}"),
    lambda: StructuredOutputsParams(json=SCHEMA),
)


ADAPTERS = 3  # more than an engine has room for


class Case(NamedTuple):
    """A request with one right answer."""

    prompt: str
    options: dict[str, Any]  # of SamplingParams
    constraint: int | None  # of CONSTRAINTS
    adapter: int  # the number of one, from 1 to ADAPTERS; 0: the base model

    @property
    def sampled(self) -> bool:
        return self.options["temperature"] > 0

    def params(self) -> SamplingParams:
        """New ones each time, as from different callers."""
        made = None if self.constraint is None else CONSTRAINTS[self.constraint]()
        return SamplingParams(**self.options, structured_outputs=made)


def draw_case(rng: random.Random) -> Case:
    text = rng.choice(TEXTS)
    repeated = text * rng.choice([1, 1, 2])
    prompt = repeated[: rng.randrange(8, len(repeated) + 1)]  # cuts of one text share its beginning
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": rng.randrange(1, 33)}
    if rng.random() < 0.6:
        options |= {"temperature": rng.choice([0.7, 1.0]), "seed": rng.randrange(2**31)}
    constraint = rng.randrange(len(CONSTRAINTS)) if rng.random() < 0.25 else None
    adapter = rng.randrange(1, ADAPTERS + 1) if rng.random() < 0.3 else 0
    for option in rng.sample(OPTIONS, rng.randrange(4)):
        options |= option(rng)
    if constraint is not None:  # these say themselves when they end
        for name in ("ignore_eos", "min_tokens", "stop", "bad_words", "allowed_token_ids"):
            options.pop(name, None)
    return Case(prompt, options, constraint, adapter)


OPTIONS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda rng: {"top_p": rng.choice([0.5, 0.95])},
    lambda rng: {"top_k": rng.choice([5, 50])},
    lambda rng: {"min_p": 0.05},
    lambda rng: {"presence_penalty": 0.5, "frequency_penalty": 0.2},
    lambda rng: {"repetition_penalty": 1.2},
    lambda rng: {"logprobs": rng.choice([0, 3])},
    lambda rng: {"prompt_logprobs": 1},
    lambda rng: {"n": rng.choice([2, 3])},
    lambda rng: {"stop": [rng.choice([".", " the", "\n"])]},
    lambda rng: {"ignore_eos": True},
    lambda rng: {"min_tokens": 1},
    lambda rng: {"bad_words": ["the", "a small"]},
    lambda rng: {"logit_bias": {rng.randrange(3, 200): 2.0}},
)

# Each must raise ValueError or TypeError before anything is queued.
INVALID: tuple[tuple[Any, Callable[[], SamplingParams]], ...] = (
    ("", lambda: SamplingParams()),
    ([[]], lambda: SamplingParams()),
    ([-1, 5], lambda: SamplingParams()),
    ([2**40], lambda: SamplingParams()),
    ({"text": "no such key"}, lambda: SamplingParams()),
    (7, lambda: SamplingParams()),
    ([5] * (MAX_MODEL_LEN + 1), lambda: SamplingParams()),
    ("hot", lambda: SamplingParams(temperature=-1)),
    ("none", lambda: SamplingParams(n=0)),
    ("many", lambda: SamplingParams(logprobs=10**6)),
    ("nowhere", lambda: SamplingParams(allowed_token_ids=[10**9])),
    ("open", lambda: SamplingParams(structured_outputs=StructuredOutputsParams(regex="(unclosed"))),
    ("type", lambda: SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "no such"}))),
    ("words", lambda: SamplingParams(temperature="warm")),  # type: ignore[arg-type]
)
