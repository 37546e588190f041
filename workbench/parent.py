"""One prompt and its n requests, seen from outside: turns what the engine knows into RequestOutputs.

Text is decoded here, and only when somebody reads it. Knows tokenizers and requests; nothing of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.engine.plan import Ints
from workbench.engine.request import Request
from workbench.engine.result import LogprobColumns, Scores
from workbench.outputs import CompletionOutput, RequestMetrics, RequestOutput
from workbench.params import LoRARequest, RequestOutputKind, SamplingParams
from workbench.text import TextStream, decoder, speller
from workbench.token_logprobs import CONTEXT, Listing, PromptLogprobs, Spell, TokenLogprobs

# The tokens a request has so far, wherever they are now; int32, prompt included.
ReadTokens = Callable[[Request], Ints]


@dataclass(slots=True, eq=False)
class Child:
    """One of the n outputs."""

    request: Request
    text: TextStream | None  # None: no tokenizer, or no text wanted
    tokens_told: int = 0  # DELTA: output tokens handed out already
    end_told: bool = False


@dataclass(slots=True, eq=False)
class Parent:
    """What was asked for with one prompt."""

    request_id: str
    prompt: str | None
    params: SamplingParams
    tokenizer: Any | None
    read_tokens: ReadTokens
    lora_request: LoRARequest | None = None
    children: list[Child] = field(default_factory=list)
    prompt_logprobs: PromptLogprobs | None = None  # once they are complete
    prompt_told: bool = False  # DELTA: they were handed out

    def add(self, request: Request) -> None:
        """One more child; its text is watched when a stop string may end it."""
        text = None
        if self.tokenizer is not None and self.params.detokenize:
            text = TextStream(
                decoder(self.tokenizer, self.params),
                self.params.stop or (),
                stop_ids=request.stop_ids,
                min_tokens=self.params.min_tokens,
                include_stop=self.params.include_stop_str_in_output,
            )
            if self.params.stop:
                request.stop_check = text.feed
        self.children.append(Child(request, text))

    @property
    def requests(self) -> list[Request]:
        return [child.request for child in self.children]

    @property
    def names(self) -> list[str]:
        """Its own id, then its children's where they have their own."""
        own = [child.request.request_id for child in self.children]
        return own if self.params.n == 1 else [self.request_id, *own]

    @property
    def finished(self) -> bool:
        return all(child.request.finished for child in self.children)

    def output(self, kind: RequestOutputKind | None = None) -> RequestOutput | None:
        """The state now, as CUMULATIVE, DELTA or FINAL_ONLY says; None when there is nothing to tell."""
        kind = kind or self.params.output_kind
        if kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        delta = kind is RequestOutputKind.DELTA
        outputs = [self._completion(index, child, delta=delta) for index, child in enumerate(self.children)]
        told = [output for output in outputs if output is not None]
        return self._assemble(told, delta=delta) if told else None

    def _assemble(self, outputs: list[CompletionOutput], *, delta: bool) -> RequestOutput:
        first = self.children[0].request
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=first.prompt_token_ids.tolist(),
            prompt_logprobs=self._prompt_logprobs(delta=delta),
            outputs=outputs,
            finished=self.finished,
            metrics=self._metrics(),
            lora_request=self.lora_request,
            num_cached_tokens=first.num_cached_tokens,
        )

    def _prompt_logprobs(self, *, delta: bool) -> PromptLogprobs | None:
        """The first child computes them, for all."""
        if delta and self.prompt_told:
            return None
        if self.prompt_logprobs is None:
            self.prompt_logprobs = _prompt_logprobs(self.children[0].request, self._spell)
        self.prompt_told = self.prompt_logprobs is not None
        return self.prompt_logprobs

    def _metrics(self) -> RequestMetrics:
        """Of all children together: the first to start, the last to end."""
        times = [child.request.times for child in self.children]
        return RequestMetrics(
            queued_ts=times[0].queued,
            scheduled_ts=min((t.scheduled for t in times if t.scheduled is not None), default=None),
            first_token_ts=min((t.first_token for t in times if t.first_token is not None), default=None),
            last_token_ts=max((t.last_token for t in times if t.last_token is not None), default=None),
            num_preemptions=sum(child.request.num_preemptions for child in self.children),
        )

    def _completion(self, index: int, child: Child, *, delta: bool) -> CompletionOutput | None:
        request = child.request
        token_ids = self.read_tokens(request)[request.num_prompt_tokens :]
        if delta and (child.end_told or (len(token_ids) == child.tokens_told and not request.finished)):
            return None
        begin = child.tokens_told if delta else 0
        child.tokens_told, child.end_told = len(token_ids), request.finished
        logprobs = _logprobs(request, token_ids, begin, self._spell)
        return CompletionOutput(
            index=index,
            text=self._text(child, token_ids, delta=delta),
            token_ids=token_ids[begin:].tolist(),
            cumulative_logprob=_cumulative(request) if logprobs is not None else None,
            logprobs=logprobs,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )

    def _text(self, child: Child, token_ids: Ints, *, delta: bool) -> str:
        text = child.text
        if text is None:
            return ""
        final = child.request.finished
        if final:
            text.finish(token_ids)
        else:
            text.feed(token_ids)
        return text.take(final=final) if delta else text.text

    @property
    def _spell(self) -> Spell | None:
        return None if self.tokenizer is None else speller(self.tokenizer)


def _logprobs(request: Request, token_ids: Ints, begin: int, spell: Spell | None) -> TokenLogprobs | None:
    """The logprobs of output tokens from `begin` on, as arrays; dicts are made when they are indexed."""
    params = request.params
    if not params.wants_logprobs:
        return None
    wanted = max(params.logprobs or 0, 0)  # the vocabulary is kept apart
    lines = request.logprobs[begin : len(token_ids)]
    return TokenLogprobs(
        token_ids=token_ids[begin:],
        sampled=[columns.sampled[line] for columns, line in lines],
        ranks=[columns.ranks[line] for columns, line in lines],
        top_ids=np.array([columns.top_ids[line, :wanted] for columns, line in lines]),
        top_logprobs=np.array([columns.top_logprobs[line, :wanted] for columns, line in lines]),
        spell=spell,
        before=[
            *request.prompt_token_ids[-CONTEXT:].tolist(),
            *token_ids[max(0, begin - CONTEXT) : begin].tolist(),
        ],
        listing=_listing(params.logprob_token_ids, lines),
        whole=request.whole_logprobs[begin : len(token_ids)],
    )


def _prompt_logprobs(request: Request, spell: Spell | None) -> PromptLogprobs | None:
    """Of every prompt token; None as long as some are to come."""
    if request.params.prompt_logprobs is None or request.scoring:
        return None
    told, prompt = Scores.joined(request.scores), request.prompt_token_ids
    return PromptLogprobs(
        TokenLogprobs(
            prompt[1:],
            told.sampled,
            told.ranks,
            told.top_ids,
            told.top_logprobs,
            spell=spell,
            before=prompt[:1].tolist(),
            whole=[row for part in request.scores for row in part.whole],
        )
    )


def _listing(ids: list[int] | None, lines: Sequence[tuple[LogprobColumns, int]]) -> Listing | None:
    """What a request's columns say of the ids it listed."""
    if ids is None:
        return None
    found = []
    for columns, line in lines:
        assert columns.listed is not None, "ids were listed and the runner did not tell of them"
        found.append((columns.listed, int(np.searchsorted(columns.listed.lines, line))))
    return Listing(
        np.array(ids, np.int32),
        np.array([listed.logprobs[place, : len(ids)] for listed, place in found], np.float32),
        np.array([listed.ranks[place, : len(ids)] for listed, place in found], np.int32),
    )


def _cumulative(request: Request) -> float:
    return float(sum(float(columns.sampled[line]) for columns, line in request.logprobs))
