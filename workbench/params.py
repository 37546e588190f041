"""What one request asks for: sampling, stopping, output. Values are checked here, where they are given.

Knows nothing of tensors, of a vocabulary or of the engine's limits; `check_against` is told those.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, TypeVar

from workbench.checks import above_zero, at_least, integer, strings, token_ids, top_count, within
from workbench.errors import check_names

GREEDY_BELOW = 1e-5  # a temperature under this picks the largest logit; dividing by it would overflow
MOST_OUTPUTS = (
    16_384  # of one prompt; each is a request, and a slip of the keyboard should not fill the memory
)
BIAS_LIMIT = 100.0  # the range people know from the OpenAI API

_T = TypeVar("_T")


class RequestOutputKind(Enum):
    """What a streamed output holds."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # only what is new
    FINAL_ONLY = 2  # nothing until the request ends


def _checks_names(replaced: Mapping[str, str]) -> Callable[[type[_T]], type[_T]]:
    """Class decorator: a keyword the dataclass does not have is refused with what to use instead."""

    def decorate(cls: type[_T]) -> type[_T]:
        init: Callable[..., None] = cls.__init__
        valid = frozenset(f.name for f in fields(cls) if f.init)  # type: ignore[arg-type]

        @functools.wraps(init)
        def checked(self: _T, *args: Any, **kwargs: Any) -> None:
            check_names(cls.__name__, kwargs, valid, replaced)
            init(self, *args, **kwargs)

        cls.__init__ = checked  # type: ignore[method-assign, assignment]
        return cls

    return decorate


_STRUCTURED = "pass structured_outputs=StructuredOutputsParams({}=...)"
_BACKEND = "the backend is one for the engine: LLM(structured_outputs_config={'backend': ...})"
_BEAMS = "call llm.beam_search(prompts, BeamSearchParams(beam_width=..., max_tokens=...))"

_NOT_SAMPLING = {
    "best_of": "use n, and pick the best by cumulative_logprob",
    "logits_processors": "give processors to the engine, for all requests: LLM(logits_processors=[...])",
    "use_beam_search": _BEAMS,
    "beam_width": _BEAMS,
    "length_penalty": _BEAMS,
    "early_stopping": _BEAMS,
    "guided_decoding": _STRUCTURED.format("json"),
    "guided_json": _STRUCTURED.format("json"),
    "guided_regex": _STRUCTURED.format("regex"),
    "guided_choice": _STRUCTURED.format("choice"),
    "guided_grammar": _STRUCTURED.format("grammar"),
    "guided_json_object": _STRUCTURED.format("json_object"),
    "guided_whitespace_pattern": _STRUCTURED.format("json=..., whitespace_pattern"),
    "response_format": _STRUCTURED.format("json"),
    "guided_decoding_backend": _BACKEND,
    "structured_outputs_backend": _BACKEND,
    "truncate_prompt_tokens": "cut the prompt yourself and pass its token ids",
    "flat_logprobs": "leave it out: logprobs stay arrays until they are indexed",
    "max_new_tokens": "use max_tokens",
    "max_length": "use max_tokens, which counts generated tokens only",
    "num_return_sequences": "use n",
    "do_sample": "use temperature=0 for greedy, temperature > 0 to sample",
    "stop_strings": "use stop",
    "eos_token_id": "use stop_token_ids",
    "random_seed": "use seed",
}


@_checks_names(_NOT_SAMPLING)
@dataclass(slots=True)
class SamplingParams:
    """How one request is sampled, when it stops and what it hands back.

    Names, defaults and meanings are vLLM's. Fields may be assigned later; the engine checks them again and
    takes its own copy when a request is added.

    Raises:
        TypeError: an unknown name, or a value of the wrong kind.
        ValueError: a value out of range.
    """

    n: int = 1  # outputs for the prompt; they share its blocks
    presence_penalty: float = 0.0  # -2..2; subtracted once from a token that was generated
    frequency_penalty: float = 0.0  # -2..2; subtracted for each time it was generated
    repetition_penalty: float = 1.0  # > 0; divides positive logits of tokens in prompt or output
    temperature: float = 1.0  # 0..2; under 1e-5 is greedy
    top_p: float = 1.0  # in (0, 1]; smallest set of tokens with this probability
    top_k: int = 0  # the k most likely tokens; 0 or -1: off
    min_p: float = 0.0  # 0..1; relative to the likeliest token
    seed: int | None = None  # None: drawn from the engine's seed
    stop: str | list[str] | None = None  # becomes a list; the text ends before the first one found
    stop_token_ids: list[int] | None = None  # becomes a list
    ignore_eos: bool = False  # EOS can be sampled and does not stop
    max_tokens: int | None = 16  # None: up to max_model_len
    min_tokens: int = 0  # before these are generated neither EOS nor stop_token_ids can be sampled
    logprobs: int | None = None  # the top k and the sampled token; -1: the whole vocabulary
    prompt_logprobs: int | None = None  # the same of the prompt's tokens; once a prompt, whatever n is
    logprob_token_ids: list[int] | None = None  # these, and the sampled token; an empty list is None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None  # added to the logits; -100..100
    allowed_token_ids: list[int] | None = None  # nothing else is sampled
    bad_words: list[str] | None = None  # never generated, with or without a space in front
    extra_args: dict[str, Any] | None = None  # for the engine's own logits processors
    skip_reading_prefix_cache: bool | None = None  # True: compute the whole prompt; still written

    def __post_init__(self) -> None:
        self.validate()

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _SAMPLING_NAMES:
            check_names("SamplingParams", (name,), _SAMPLING_NAMES, _NOT_SAMPLING)
        object.__setattr__(self, name, value)

    def validate(self) -> None:
        """Bring every field to its canonical form and refuse what is out of range."""
        _check_numbers(self)
        _check_lengths(self)
        _check_stops(self)
        _check_logprobs(self)
        _check_token_sets(self)
        _check_switches(self)

    @property
    def is_greedy(self) -> bool:
        """The largest logit is taken; nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    @property
    def wants_logprobs(self) -> bool:
        """Something is told of every generated token."""
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def adjusts_logits(self) -> bool:
        """Single tokens become likelier or less likely by what it asks for, a grammar aside."""
        penalised = self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty
        limited = self.allowed_token_ids is not None or self.min_tokens > 0
        return bool(penalised or limited or self.logit_bias or self.bad_words)

    def clone(self) -> SamplingParams:
        """A copy that shares no list or dict with this one."""
        twin = object.__new__(type(self))
        for name in _SAMPLING_NAMES:
            value = getattr(self, name)
            # Every request is cloned: what cannot change is not looked into.
            object.__setattr__(twin, name, value if isinstance(value, _PLAIN) else copy.deepcopy(value))
        return twin

    def __repr__(self) -> str:
        return _short_repr(self)


_PLAIN = (int, float, str, type(None), RequestOutputKind)
_SAMPLING_NAMES = frozenset(f.name for f in fields(SamplingParams))


@_checks_names({"length_norm": "use length_penalty", "n": "use beam_width"})
@dataclass(slots=True)
class BeamSearchParams:
    """A beam search: `beam_width` hypotheses, ranked by cumulative logprob / length ** length_penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False  # EOS completes nothing
    temperature: float = 0.0  # above 0 a beam also offers a token it drew; the ranking stays that of logprobs
    length_penalty: float = 1.0  # above 0 favours long hypotheses; the length is that of prompt and output
    include_stop_str_in_output: bool = False  # whether the text shows EOS; the tokens have it

    def __post_init__(self) -> None:
        self.beam_width = at_least("beam_width", self.beam_width, 1)
        self.max_tokens = at_least("max_tokens", self.max_tokens, 1)
        self.temperature = within("temperature", self.temperature, 0.0, 2.0)
        self.length_penalty = within(
            "length_penalty", self.length_penalty, -50.0, 50.0
        )  # keeps floats finite
        for name in ("ignore_eos", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {getattr(self, name)!r}: use True or False")


_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@_checks_names({"backend": _BACKEND, "_backend": _BACKEND, "schema": "use json", "guided_json": "use json"})
@dataclass(slots=True)
class StructuredOutputsParams:
    """What the output has to match: exactly one constraint."""

    json: str | dict[str, Any] | None = None  # a JSON schema
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # EBNF
    json_object: bool | None = None  # any JSON object
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Refuse no constraint, and more than one."""
        given = [name for name in _CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none"
            raise ValueError(f"structured outputs take exactly one of {', '.join(_CONSTRAINTS)}: {what}")
        if self.choice is not None and not self.choice:
            raise ValueError("choice is empty: list at least one string")

    def __repr__(self) -> str:
        return _short_repr(self)


@_checks_names({"lora_local_path": "use lora_path"})
@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter, by name, number and folder."""

    lora_name: str
    lora_int_id: int  # >= 1; 0 is the base model
    lora_path: str

    def __post_init__(self) -> None:
        if integer("lora_int_id", self.lora_int_id) < 1:
            raise ValueError(f"lora_int_id is {self.lora_int_id}: adapters are numbered from 1")
        if not self.lora_path:
            raise ValueError("lora_path is empty: give the adapter's folder")


def check_against(params: SamplingParams, *, vocab_size: int, max_logprobs: int) -> None:
    """Raise ValueError where the params ask for more than the engine or its model has.

    `max_logprobs` guards against a slip of the keyboard: -1 sets it aside, as does asking for -1.
    """
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        if count is not None and 0 <= max_logprobs < count:
            raise ValueError(
                f"{name} is {count}, the engine gives {max_logprobs} at most: raise max_logprobs"
            )
        if count is not None and count > vocab_size:
            raise ValueError(
                f"{name} is {count}, the vocabulary has {vocab_size} tokens: ask for fewer, or -1 for all"
            )
    _check_vocabulary("logprob_token_ids", params.logprob_token_ids or (), vocab_size)
    _check_vocabulary("logit_bias", params.logit_bias or (), vocab_size)
    _check_vocabulary("allowed_token_ids", params.allowed_token_ids or (), vocab_size)
    _check_vocabulary("stop_token_ids", params.stop_token_ids or (), vocab_size)


def _check_numbers(p: SamplingParams) -> None:
    p.n = at_least("n", p.n, 1)
    if p.n > MOST_OUTPUTS:
        raise ValueError(f"n is {p.n}: use {MOST_OUTPUTS} at most, and send the prompt again for more")
    p.presence_penalty = within("presence_penalty", p.presence_penalty, -2.0, 2.0)
    p.frequency_penalty = within("frequency_penalty", p.frequency_penalty, -2.0, 2.0)
    p.repetition_penalty = above_zero("repetition_penalty", p.repetition_penalty, "1 turns it off")
    p.temperature = within("temperature", p.temperature, 0.0, 2.0, remedy="0 is greedy, 1 leaves the logits")
    p.top_p = above_zero("top_p", p.top_p, "1 turns it off")
    if p.top_p > 1.0:
        raise ValueError(f"top_p is {p.top_p}: use more than 0 and at most 1; 1 turns it off")
    p.min_p = within("min_p", p.min_p, 0.0, 1.0, remedy="0 turns it off")
    p.top_k = max(0, at_least("top_k", p.top_k, -1, remedy="0 or -1 turns it off"))
    if p.seed is not None:
        seed = integer("seed", p.seed)
        p.seed = None if seed == -1 else seed  # -1: vLLM's other way to say "none"


def _check_lengths(p: SamplingParams) -> None:
    p.min_tokens = at_least("min_tokens", p.min_tokens, 0)
    if p.max_tokens is None:
        return
    p.max_tokens = at_least("max_tokens", p.max_tokens, 1, remedy="None is up to max_model_len")
    if p.min_tokens > p.max_tokens:
        raise ValueError(
            f"min_tokens is {p.min_tokens}, max_tokens {p.max_tokens}: raise max_tokens or lower min_tokens"
        )


def _check_stops(p: SamplingParams) -> None:
    p.stop = strings("stop", p.stop)
    p.stop_token_ids = token_ids("stop_token_ids", p.stop_token_ids or [])
    if p.stop and not p.detokenize:
        raise ValueError("stop strings need text, and detokenize is False: set it True or use stop_token_ids")


def _check_logprobs(p: SamplingParams) -> None:
    p.logprobs = top_count("logprobs", p.logprobs)
    p.prompt_logprobs = top_count("prompt_logprobs", p.prompt_logprobs)
    if p.logprob_token_ids is not None:
        ids = token_ids("logprob_token_ids", p.logprob_token_ids)
        p.logprob_token_ids = list(dict.fromkeys(ids)) or None


def _check_token_sets(p: SamplingParams) -> None:
    if p.logit_bias is not None:
        if not isinstance(p.logit_bias, Mapping):
            raise TypeError(f"logit_bias is {p.logit_bias!r}: use a dict of token id to bias")
        p.logit_bias = {_bias_key(key): _bias(key, value) for key, value in p.logit_bias.items()}
    if p.allowed_token_ids is not None:
        p.allowed_token_ids = token_ids("allowed_token_ids", p.allowed_token_ids)
        if not p.allowed_token_ids:
            raise ValueError(
                "allowed_token_ids is empty, so nothing could be sampled: None allows every token"
            )
    if p.bad_words is not None:
        p.bad_words = strings("bad_words", p.bad_words)


def _check_switches(p: SamplingParams) -> None:
    for name in _SWITCHES:
        if not isinstance(getattr(p, name), bool):
            raise TypeError(f"{name} is {getattr(p, name)!r}: use True or False")
    if not isinstance(p.skip_reading_prefix_cache, bool | None):
        raise TypeError(
            f"skip_reading_prefix_cache is {p.skip_reading_prefix_cache!r}: use True, False or None"
        )
    if not isinstance(p.output_kind, RequestOutputKind):
        raise TypeError(
            f"output_kind is {p.output_kind!r}: use RequestOutputKind.CUMULATIVE, DELTA or FINAL_ONLY"
        )
    if not isinstance(p.structured_outputs, StructuredOutputsParams | None):
        raise TypeError(
            f"structured_outputs is {p.structured_outputs!r}: use StructuredOutputsParams(json=...)"
        )
    if p.structured_outputs is not None:
        p.structured_outputs.validate()
        if p.ignore_eos:
            raise ValueError("structured_outputs end with EOS, and ignore_eos is True: leave one of them out")
    if p.extra_args is not None and not isinstance(p.extra_args, dict):
        raise TypeError(f"extra_args is {p.extra_args!r}: use a dict")


_SWITCHES = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


def _bias_key(key: object) -> int:
    if isinstance(key, str) and key.isdecimal():  # JSON has no other keys
        return int(key)
    return at_least("a token id in logit_bias", key, 0)


def _bias(key: object, value: object) -> float:
    if value == -math.inf:  # never sampled; adding it is well defined, unlike +inf
        return -math.inf
    return within(f"logit_bias[{key}]", value, -BIAS_LIMIT, BIAS_LIMIT)


def _check_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if token_id >= vocab_size:
            raise ValueError(f"{name} holds token id {token_id}, the vocabulary ends at {vocab_size - 1}")


def _short_repr(params: Any) -> str:
    """Only what differs from the defaults."""
    plain = {f.name: f.default for f in fields(params)}
    shown = (
        f"{name}={value!r}"
        for name in plain
        if (value := getattr(params, name)) != plain[name] and value != []
    )
    return f"{type(params).__name__}({', '.join(shown)})"
