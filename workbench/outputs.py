"""What a request hands back. Names, order and meanings of the fields are vLLM's.

Plain values: knows neither the engine nor tensors. Times are seconds of the engine's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from workbench.params import LoRARequest

SHOWN = 60  # characters of a text that a repr shows


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log probability at one position."""

    logprob: float  # natural log
    rank: int | None = None  # 1 is the best
    decoded_token: str | None = None  # None without a tokenizer

    def __repr__(self) -> str:
        return f"Logprob({self.logprob:.4f}, rank={self.rank}, decoded_token={self.decoded_token!r})"


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request. None: not yet, or never."""

    queued_ts: float | None = None  # it joined the waiting queue
    scheduled_ts: float | None = None  # the first step that computes it was planned
    first_token_ts: float | None = None
    last_token_ts: float | None = None
    num_preemptions: int = 0


class TokenLogprobs(Sequence[dict[int, Logprob]]):
    """Logprobs of the generated tokens: one dict a token, sampled token first, made when it is indexed.

    Args:
        token_ids: [n]; the sampled tokens.
        sampled: [n] float32; their logprobs.
        ranks: [n]; their ranks, 1 is the best.
        top_ids: [n, k]; the k most likely tokens, best first.
        top_logprobs: [n, k] float32.
        decode: text of one token, or None without a tokenizer.
    """

    def __init__(
        self,
        token_ids: npt.ArrayLike,
        sampled: npt.ArrayLike,
        ranks: npt.ArrayLike,
        top_ids: npt.ArrayLike,
        top_logprobs: npt.ArrayLike,
        decode: Callable[[int], str] | None = None,
    ) -> None:
        self.token_ids = np.asarray(token_ids, dtype=np.int32)
        self.sampled = np.asarray(sampled, dtype=np.float32)
        self.ranks = np.asarray(ranks, dtype=np.int32)
        count = len(self.token_ids)
        self.top_ids = np.asarray(top_ids, dtype=np.int32).reshape(count, -1 if count else 0)
        self.top_logprobs = np.asarray(top_logprobs, dtype=np.float32).reshape(self.top_ids.shape)
        self._decode = decode

    def __len__(self) -> int:
        return len(self.token_ids)

    @overload
    def __getitem__(self, index: int) -> dict[int, Logprob]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[int, Logprob]]: ...
    def __getitem__(self, index: int | slice) -> dict[int, Logprob] | list[dict[int, Logprob]]:
        if isinstance(index, slice):
            return [self._entry(place) for place in range(*index.indices(len(self)))]
        return self._entry(range(len(self))[index])

    def __iter__(self) -> Iterator[dict[int, Logprob]]:
        return (self._entry(place) for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[object, ...]:
        """For pickle and copy: the texts of the tokens go along, not the tokenizer."""
        decode = None
        if self._decode is not None:
            ids = {*self.token_ids.tolist(), *self.top_ids.ravel().tolist()}
            decode = {token_id: self._decode(token_id) for token_id in ids}.__getitem__
        arrays = (self.token_ids, self.sampled, self.ranks, self.top_ids, self.top_logprobs)
        return TokenLogprobs, (*arrays, decode)

    def _entry(self, place: int) -> dict[int, Logprob]:
        token_id = int(self.token_ids[place])
        entry = {token_id: self._logprob(token_id, self.sampled[place], self.ranks[place])}
        top = zip(self.top_ids[place].tolist(), self.top_logprobs[place], strict=True)
        for rank, (top_id, value) in enumerate(top, start=1):
            if top_id != token_id:  # the sampled token keeps its place
                entry[top_id] = self._logprob(top_id, value, rank)
        return entry

    def _logprob(self, token_id: int, value: np.float32, rank: int | np.int32) -> Logprob:
        text = None if self._decode is None else self._decode(token_id)
        return Logprob(float(value), int(rank), text)


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of a request's n outputs, as far as it has come."""

    index: int  # 0 .. n - 1
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None  # None unless logprobs were asked for
    logprobs: Sequence[dict[int, Logprob]] | None = None  # one dict a token
    finish_reason: Literal["stop", "length", "abort", "error"] | None = None
    stop_reason: int | str | None = None  # a token id, a stop string, a processor's failure; None for EOS
    lora_request: LoRARequest | None = None

    def finished(self) -> bool:
        """It ended, for whatever reason."""
        return self.finish_reason is not None

    def __repr__(self) -> str:
        end = f", finish_reason={self.finish_reason!r}" if self.finished() else ""
        why = f", stop_reason={self.stop_reason!r}" if self.stop_reason is not None else ""
        text = _short(self.text)
        return f"CompletionOutput(index={self.index}, text={text}, {_count(self.token_ids)}{end}{why})"


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's outputs, with what is known of its prompt."""

    request_id: str
    prompt: str | None  # None where the prompt came as token ids
    prompt_token_ids: Sequence[int]
    prompt_logprobs: Sequence[dict[int, Logprob] | None] | None  # entry 0 is None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    lora_request: LoRARequest | None = None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache when it was first scheduled

    def __repr__(self) -> str:
        prompt = "" if self.prompt is None else f"prompt={_short(self.prompt)}, "
        state = "finished" if self.finished else "running"
        return (
            f"RequestOutput({self.request_id!r}, {prompt}{_count(self.prompt_token_ids)}, "
            f"{self.num_cached_tokens} cached, {state}, outputs={self.outputs!r})"
        )


@dataclass(frozen=True, slots=True)
class BeamSearchSequence:
    """One hypothesis of a beam search."""

    tokens: list[int]  # of prompt and output, EOS included
    logprobs: list[dict[int, Logprob]]  # one dict an output token: what its beam offered
    lora_request: LoRARequest | None = None
    cum_logprob: float = 0.0  # of the output
    text: str | None = None  # of prompt and output; "" without a tokenizer
    finish_reason: Literal["stop", "length", "abort", "error"] | None = None
    stop_reason: int | str | None = None

    def __repr__(self) -> str:
        return (
            f"BeamSearchSequence(text={_short(self.text or '')}, {_count(self.tokens)},"
            f" cum_logprob={self.cum_logprob:.4f}, finish_reason={self.finish_reason!r})"
        )


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """A prompt's hypotheses, the best first: as many as the beam is wide."""

    sequences: list[BeamSearchSequence]


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def _count(token_ids: Sequence[int]) -> str:
    return f"{len(token_ids)} token{'' if len(token_ids) == 1 else 's'}"
