"""From what people pass to requests the scheduler takes: forms, defaults, limits, seeds. Queues nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from workbench.build import Built, adapters_of
from workbench.cache.hashing import hash_function, root_key
from workbench.checks import integer
from workbench.engine.clock import Clock
from workbench.engine.request import Request, Times
from workbench.logits_processors import validate
from workbench.params import LoRARequest, SamplingParams, check_against
from workbench.parent import Parent, ReadTokens
from workbench.prompts import Prompt, Words, many, read_prompt, tokens_of_words
from workbench.structured.compilation import Compilation

_WORD = 0xFFFF_FFFF_FFFF_FFFF


class Intake:
    """Checks prompts and params against one engine and makes their requests."""

    def __init__(
        self, built: Built, clock: Clock, read_tokens: ReadTokens, in_use: Callable[[str], bool]
    ) -> None:
        self._built = built
        self._clock = clock
        self._read_tokens = read_tokens
        self._in_use = in_use  # whether a request id is taken
        self._numbers = itertools.count()
        # An id beyond the vocabulary never comes, and the sampler could not forbid it.
        self._eos = tuple(i for i in built.spec.eos_token_ids if 0 <= i < built.spec.vocab_size)
        self._digest = hash_function(built.config.prefix_caching_hash_algo)

    def all(
        self,
        prompts: Any,
        params: SamplingParams | Sequence[SamplingParams],
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None,
        priority: int | Sequence[int] | None,
    ) -> list[Parent]:
        """Every prompt of a call, or an error that names the first bad one; nothing is queued before."""
        prompts = many(prompts)
        per_params = spread("sampling_params", params, len(prompts))
        per_lora = spread("lora_request", lora_request, len(prompts))
        per_priority = spread("priority", priority, len(prompts))
        parents = []
        for index, prompt in enumerate(prompts):
            try:
                parents.append(
                    self.one(prompt, per_params[index], None, per_lora[index], per_priority[index] or 0)
                )
            except (ValueError, TypeError) as error:
                if len(prompts) == 1:
                    raise
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"prompt {index} of {len(prompts)}: {error}") from error
        return parents

    def one(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str | None = None,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        score_from: int = 1,
    ) -> Parent:
        """One prompt's n requests.

        Args:
            score_from: the first token that prompt logprobs, if they are asked for, are computed of.

        Raises:
            ValueError, TypeError: the prompt, the params or both ask for what this engine cannot do.
        """
        if not isinstance(params, SamplingParams):
            raise TypeError(f"sampling_params is {params!r}: use SamplingParams(...)")
        request_id = None if request_id is None else read_id(request_id)
        params = params.clone()
        params.validate()
        check_against(
            params, vocab_size=self._built.spec.vocab_size, max_logprobs=self._built.config.max_logprobs
        )
        validate(self._built.processors, params)
        # More than there are cuts nothing off, and on the device the number has 64 bits.
        params.top_k = min(params.top_k, self._built.spec.vocab_size)
        if params.stop and self._built.tokenizer is None:
            raise ValueError("stop strings need a tokenizer (skip_tokenizer_init): use stop_token_ids")
        bad_words = tokens_of_words(
            params.bad_words or (), self._built.tokenizer, self._built.spec.vocab_size
        )
        self._check_possible(params, bad_words)
        read = read_prompt(prompt, self._built.tokenizer)
        self._check_prompt(read)
        grammar = None
        if params.structured_outputs is not None:
            grammar = self._built.grammars.ask(params.structured_outputs)
        adapter = None if lora_request is None else self._adapter(lora_request)
        number = self._next_number(params.n)
        name = str(number) if request_id is None else request_id
        parent = Parent(name, read.text, params, self._built.tokenizer, self._read_tokens, lora_request)
        for child, own in enumerate(_names(name, params.n)):
            seed = self._seed(params, number, child)
            request = self._request(own, read, params, seed, integer("priority", priority), grammar, adapter)
            request.bad_words = bad_words
            if params.prompt_logprobs is not None and child == 0:
                request.score_prompt(score_from)
            parent.add(request)
        return parent

    def _adapter(self, lora_request: LoRARequest) -> int:
        """The engine's number of an adapter, which is read and checked when it comes for the first time."""
        return adapters_of(self._built).add(lora_request).number

    def _check_possible(self, params: SamplingParams, bad_words: Words) -> None:
        """Some token must be left to sample, also while min_tokens forbids those that end a request."""
        ends = {*(params.stop_token_ids or ()), *(() if params.ignore_eos else self._eos)}
        allowed = params.allowed_token_ids
        never = {word[0] for word in bad_words if len(word) == 1}
        if never.issuperset(range(self._built.spec.vocab_size) if allowed is None else allowed):
            raise ValueError(
                "bad_words forbid every token that may be sampled: allow another token, or leave some out"
            )
        if params.min_tokens and allowed is not None and ends.issuperset(allowed):
            raise ValueError(
                f"allowed_token_ids {allowed} all end the request, and min_tokens is {params.min_tokens}:"
                " allow another token, or set min_tokens to 0"
            )

    def _next_number(self, n: int) -> int:
        """The next number that is nobody's id; people may have given theirs any name."""
        number = next(self._numbers)
        while any(self._in_use(name) for name in (str(number), *_names(str(number), n))):
            number = next(self._numbers)
        return number

    def _check_prompt(self, prompt: Prompt) -> None:
        config, vocab = self._built.config, self._built.spec.vocab_size
        largest = int(prompt.token_ids.max())
        if largest >= vocab:
            raise ValueError(f"token id {largest} is not in the vocabulary, which ends at {vocab - 1}")
        count, most = len(prompt.token_ids), config.max_model_len
        if count < most:
            return
        longest = self._built.spec.max_position_embeddings
        if most < longest and config.num_cache_tokens < count:
            knob = "gpu_memory_utilization" if config.device == "cuda" else "kv_cache_memory_bytes"
            raise ValueError(
                f"prompt has {count} tokens, the cache holds {config.num_cache_tokens}: raise {knob} (or"
                " num_gpu_blocks_override, where it is set) or shorten the prompt"
            )
        raise ValueError(
            f"prompt has {count} tokens and max_model_len is {most}, which leaves no room for an answer:"
            f" raise max_model_len (the model takes {longest}) or shorten the prompt"
        )

    def _seed(self, params: SamplingParams, number: int, child: int) -> int:
        """64 bits: the request's own seed, or one that follows from the engine's and the request's number."""
        if params.seed is not None:
            return _signed(params.seed + child)
        return _signed(_scramble(_scramble(self._built.config.seed) + number) + child)

    def _request(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams,
        seed: int,
        priority: int,
        grammar: Compilation | None,
        adapter: int | None,
    ) -> Request:
        most = self._built.config.max_model_len
        room = most - len(prompt.token_ids)
        extra: tuple[str | int, ...] = () if prompt.cache_salt is None else ("salt", prompt.cache_salt)
        if adapter is not None:
            extra += ("adapter", adapter)
        cache = self._built.engine.scheduler.cache
        return Request(
            request_id=name,
            prompt_token_ids=prompt.token_ids,
            params=params,
            max_length=len(prompt.token_ids) + min(params.max_tokens or room, room),
            seed=seed,
            eos_token_ids=() if params.ignore_eos else self._eos,
            times=Times(self._clock()),
            tables=cache.open(root_key(self._digest, extra)),
            priority=priority,
            need=grammar,
            adapter=adapter,
        )


def read_id(request_id: object) -> str:
    """A request's id as a plain str, which every file can hold; an Enum's members are other keys than it."""
    if not isinstance(request_id, str):
        raise TypeError(f"request_id is {request_id!r}: use a str, or leave it out")
    plain = str.__str__(request_id)
    try:
        plain.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"request_id {plain!r} holds half a surrogate pair, which no file can hold: use whole characters"
        ) from None
    return plain


def _names(name: str, n: int) -> list[str]:
    """Ids of the n requests behind one prompt, as in vLLM."""
    return [name] if n == 1 else [f"{child}_{name}" for child in range(n)]


def spread(name: str, value: object, count: int) -> Sequence[Any]:
    """One value for all, or a list with one a prompt."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries for {count} prompts: give one, or one a prompt")
    return value


def _scramble(x: int) -> int:
    """SplitMix64's step (Steele et al. 2014): neighbouring numbers become unrelated ones."""
    x = (x + 0x9E37_79B9_7F4A_7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58_476D_1CE4_E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D0_49BB_1331_11EB) & _WORD
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    """The low 64 bits as a signed number, which is what a tensor holds."""
    x &= _WORD
    return x - (1 << 64) if x >> 63 else x
