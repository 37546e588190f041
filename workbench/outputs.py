"""What a request hands back. Names, order and meanings of the fields are vLLM's.

Plain values: knows neither the engine nor tensors. Times are seconds of the engine's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from workbench.params import LoRARequest
from workbench.token_logprobs import Logprob

SHOWN = 60  # characters of a text that a repr shows


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """When things happened to a request. None: not yet, or never."""

    queued_ts: float | None = None  # it joined the waiting queue
    scheduled_ts: float | None = None  # the first step that computes it was planned
    first_token_ts: float | None = None
    last_token_ts: float | None = None
    num_preemptions: int = 0


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


class Likelihood(NamedTuple):
    """How likely a continuation is behind its context. Logprobs are natural logarithms."""

    logprob: float  # of the continuation: the sum over its tokens
    is_greedy: bool  # greedy generation would have given exactly these tokens: every rank is 1
    token_ids: list[int]  # of the continuation
    token_logprobs: list[float]  # of each of its tokens, behind all those before it
    token_ranks: list[int]  # of each; 1 is the likeliest
    num_cached_tokens: int  # tokens of the context that were found in the prefix cache, not computed


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
