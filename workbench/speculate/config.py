"""`speculative_config`: checked, and as plain values. Imports neither torch nor drafters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from workbench.checks import at_least
from workbench.errors import check_names

DRAFTED = 256  # tokens of a step; where more requests draft than that, those that came first do
_COMMON = frozenset(("method", "num_speculative_tokens", "adaptive"))
METHODS = {  # and the names each takes
    "ngram": _COMMON | {"prompt_lookup_max", "prompt_lookup_min"},
    "suffix": _COMMON,
    "draft_model": _COMMON | {"model"},
}
_BY_ITSELF = "leave it out: a draft is as long as its match and its chances have it"
_ELSEWHERE = {
    "draft_tensor_parallel_size": "the engine runs on one device: leave it out",
    "disable_by_batch_size": "leave it out: adaptive=True stops where drafts cost more than they give",
    "speculative_disable_by_batch_size": "leave it out: adaptive=True does that by what steps cost",
    "draft_model": "use 'model', with method='draft_model'",
    "speculative_model": f"use one of the methods {', '.join(map(repr, METHODS))}",
    "suffix_decoding_max_tree_depth": "leave it out: matches may be of any length",
    "suffix_decoding_max_cached_requests": "leave it out: the latest outputs are kept, by their tokens",
    "suffix_decoding_max_spec_factor": _BY_ITSELF,
    "suffix_decoding_min_token_prob": _BY_ITSELF,
}


class Room(NamedTuple):
    """Drafts at most."""

    each: int  # of a request in a step
    all: int  # of a step: each takes a line of logits


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """What is drafted, by vLLM's names."""

    method: str
    num_speculative_tokens: int = 5  # most drafts of a request in a step
    prompt_lookup_max: int = 4  # tokens of the longest run that is looked up
    prompt_lookup_min: int = 1  # and of the shortest
    adaptive: bool = True  # fewer, or none, where drafts cost more than they bring
    model: str | None = None  # that drafts: a folder, a hub id, or `zoo/<name>`

    def room(self, rows: int) -> Room:
        """For so many requests."""
        return Room(self.num_speculative_tokens, min(rows * self.num_speculative_tokens, DRAFTED))


def read_speculative_config(given: object) -> SpeculativeConfig | None:
    """The dict given to `LLM`, checked; None where nothing is to be drafted.

    Raises:
        TypeError, ValueError: with what to use instead.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise TypeError(f"speculative_config is {given!r}: use a dict such as {{'method': 'ngram'}}")
    values = {str(name): value for name, value in given.items()}
    check_names("speculative_config", values, frozenset().union(*METHODS.values()), _ELSEWHERE)
    method = values.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(
            f"speculative_config: the method is {method!r}: use one of {', '.join(map(repr, METHODS))}"
        )
    check_names(f"speculative_config of method {method!r}", values, METHODS[method])
    return _checked(values)


def _checked(values: dict[str, Any]) -> SpeculativeConfig:
    for name in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
        if name in values:
            values[name] = at_least(f"speculative_config: {name}", values[name], 1)
    config = SpeculativeConfig(**values)
    if not isinstance(config.adaptive, bool):
        raise TypeError(f"speculative_config: adaptive is {config.adaptive!r}: use True or False")
    if (config.method == "draft_model") != (isinstance(config.model, str) and bool(config.model)):
        raise ValueError(
            f"speculative_config: the model of method 'draft_model' is {config.model!r}: use a folder, a"
            " hub id or 'zoo/<name>', with the vocabulary of the engine's model"
        )
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ValueError(
            f"speculative_config: prompt_lookup_min is {config.prompt_lookup_min}, more than"
            f" prompt_lookup_max {config.prompt_lookup_max}: lower the one or raise the other"
        )
    return config
