"""Beam search over the engine as anybody uses it: a beam is a request for one token, a round is a batch.

Decides which hypotheses live, and knows nothing of how requests are run. A beam's tokens are found in the
prefix cache, so that a round computes its newest token and those that share a block that is not full yet.

The rule is vLLM's. In every round each beam offers its 2 * beam_width likeliest tokens (and the one it drew).
What ends with EOS is complete; of the others the `beam_width` likeliest go on, until there are max_tokens. Of
all that is complete then, and of the beams left, the best are returned, by

    cumulative logprob / (tokens of prompt and output, EOS not counted) ** length_penalty

where logprobs are the engine's: what temperature and logits processors change counts with
logprobs_mode="processed_logprobs" alone.

transformers differs in three things: its length leaves the prompt out and counts EOS; only what is among the
`num_beams` likeliest of its round may complete; and it may stop before max_new_tokens (early_stopping). Where
no EOS comes the two agree; and with length_penalty=0 and early_stopping="never", where nothing that completes
is less likely than `num_beams` others of its round.

Two things differ from vLLM. EOS is what ends a request of `generate`, any of the model's EOS ids; vLLM's
search knows the tokenizer's alone. And `text` leaves EOS out unless include_stop_str_in_output, which vLLM's
server heeds and its LLM does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from workbench.checks import at_least
from workbench.config import EngineConfig
from workbench.intake import Intake, spread
from workbench.models.spec import ModelSpec
from workbench.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from workbench.params import BeamSearchParams, LoRARequest, SamplingParams
from workbench.parent import Parent
from workbench.progress import Bar
from workbench.prompts import many

Generate = Callable[..., list[RequestOutput]]


class Origin(NamedTuple):
    """What a prompt's beams have in common."""

    prompt_token_ids: list[int]
    cache_salt: str | None
    lora_request: LoRARequest | None = None

    @classmethod
    def of(cls, parent: Parent, prompt: Any, lora_request: LoRARequest | None) -> Origin:
        """From a prompt as it was given, and as it was read."""
        salt = prompt.get("cache_salt") if isinstance(prompt, Mapping) else None
        return cls(parent.requests[0].prompt_token_ids.tolist(), salt, lora_request)


class Candidate(NamedTuple):
    """A beam with one more token."""

    beam: BeamSearchSequence
    token_id: int
    cum_logprob: float


class Search:
    """The hypotheses of one prompt."""

    def __init__(self, origin: Origin, rounds: int, eos: frozenset[int], params: BeamSearchParams) -> None:
        """`rounds`: most tokens of the output. `eos`: ids that complete a hypothesis."""
        self.origin = origin
        self.beams = [BeamSearchSequence(origin.prompt_token_ids, [], origin.lora_request)]
        self.rounds = rounds  # left
        self._eos = eos
        self._params = params
        self._completed: list[BeamSearchSequence] = []

    def prompts(self) -> list[dict[str, Any]]:
        """The beams as prompts of `generate`."""
        salt = {} if self.origin.cache_salt is None else {"cache_salt": self.origin.cache_salt}
        return [{"prompt_token_ids": beam.tokens, **salt} for beam in self.beams]

    def take(self, outputs: Sequence[RequestOutput]) -> None:
        """One round: each beam's output, in their order."""
        failed = [out.outputs[0] for out in outputs if not out.outputs[0].logprobs]
        if failed:  # without one of its beams it would be another search
            self._end(failed[0].finish_reason, failed[0].stop_reason)
            return
        self.rounds -= 1
        open_ones: list[Candidate] = []
        for candidate in self._candidates(outputs):
            if candidate.token_id in self._eos:
                self._completed.append(_grown(candidate, "stop"))
            else:
                open_ones.append(candidate)
        # All are of one length: the penalty does not change their order.
        open_ones.sort(key=lambda candidate: candidate.cum_logprob, reverse=True)
        self.beams = [_grown(candidate) for candidate in open_ones[: self._params.beam_width]]
        if not self.rounds:
            self._end("length")

    def _candidates(self, outputs: Sequence[RequestOutput]) -> list[Candidate]:
        found = []
        for beam, output in zip(self.beams, outputs, strict=True):
            (entry,) = output.outputs[0].logprobs or ()
            grown = replace(beam, logprobs=[*beam.logprobs, entry])
            found += [Candidate(grown, token, beam.cum_logprob + p.logprob) for token, p in entry.items()]
        return found

    def _end(self, reason: Any, why: int | str | None = None) -> None:
        self._completed += [replace(beam, finish_reason=reason, stop_reason=why) for beam in self.beams]
        self.beams = []

    def best(self) -> list[BeamSearchSequence]:
        """What is returned, best first; without text."""
        ranked = sorted(self._completed, key=self._score, reverse=True)
        return ranked[: self._params.beam_width]

    def _score(self, sequence: BeamSearchSequence) -> float:
        length = len(sequence.tokens) - (sequence.finish_reason == "stop")
        return sequence.cum_logprob / float(length) ** self._params.length_penalty


def _grown(candidate: Candidate, reason: Any = None) -> BeamSearchSequence:
    beam, token_id, cum_logprob = candidate
    return replace(beam, tokens=[*beam.tokens, token_id], cum_logprob=cum_logprob, finish_reason=reason)


class BeamSearch:
    """Searches that share an engine and their params.

    Raises:
        ValueError, TypeError: the params ask for what this engine cannot do.
    """

    def __init__(
        self, config: EngineConfig, spec: ModelSpec, tokenizer: Any | None, params: BeamSearchParams
    ) -> None:
        if not isinstance(params, BeamSearchParams):
            raise TypeError(f"params is {params!r}: use BeamSearchParams(beam_width=..., max_tokens=...)")
        self._params = replace(params)  # checked again: fields may have been assigned
        self._tokenizer = tokenizer
        self._max_length = config.max_model_len
        self._eos = frozenset() if self._params.ignore_eos else frozenset(spec.eos_token_ids)
        self._one_token = SamplingParams(
            max_tokens=1,
            temperature=self._params.temperature,
            logprobs=_num_offered(self._params.beam_width, len(self._eos), config, spec.vocab_size),
            detokenize=False,
        )

    def read(self, prompts: Any, lora_request: Any, intake: Intake) -> list[Origin]:
        """Every prompt of a call, or an error that names the first bad one."""
        prompts = many(prompts)
        adapters = spread("lora_request", lora_request, len(prompts))
        parents = intake.all(prompts, self._one_token, adapters, None)
        return [Origin.of(*each) for each in zip(parents, prompts, adapters, strict=True)]

    def run(
        self,
        origins: Sequence[Origin],
        generate: Generate,
        use_tqdm: bool | Callable[..., Any],
        at_once: int | None,
    ) -> list[BeamSearchOutput]:
        """Search for all, `at_once` together (None: all of them)."""
        size = max(1, len(origins)) if at_once is None else at_least("concurrency_limit", at_once, 1)
        groups = [[*map(self._start, origins[i : i + size])] for i in range(0, len(origins), size)]
        total = sum(max(search.rounds for search in group) for group in groups)
        with Bar(use_tqdm, total, "Beam search", "token") as bar:
            for group in groups:
                self._search(group, generate, bar)
        return [self._output(search) for group in groups for search in group]

    def _search(self, searches: Sequence[Search], generate: Generate, bar: Bar) -> None:
        """Round after round until nobody has a beam."""
        while beams := [(search, prompt) for search in searches for prompt in search.prompts()]:
            adapters = [search.origin.lora_request for search, _ in beams]
            prompts = [prompt for _, prompt in beams]
            outputs = generate(prompts, self._one_token, use_tqdm=False, lora_request=adapters)
            owned = zip((search for search, _ in beams), outputs, strict=True)
            for search, mine in groupby(owned, key=itemgetter(0)):
                search.take([output for _, output in mine])
            bar.advance()

    def _start(self, origin: Origin) -> Search:
        room = self._max_length - len(origin.prompt_token_ids)
        return Search(origin, min(self._params.max_tokens, room), self._eos, self._params)

    def _output(self, search: Search) -> BeamSearchOutput:
        return BeamSearchOutput([replace(best, text=self._text(best)) for best in search.best()])

    def _text(self, sequence: BeamSearchSequence) -> str:
        if self._tokenizer is None:
            return ""
        cut = sequence.finish_reason == "stop" and not self._params.include_stop_str_in_output
        return str(self._tokenizer.decode(sequence.tokens[:-1] if cut else sequence.tokens))


def _num_offered(width: int, num_eos: int, config: EngineConfig, vocab_size: int) -> int:
    """Tokens each beam offers: enough that `width` of them go on even if every EOS is among them."""
    wanted = min(max(2 * width, width + num_eos), vocab_size)
    if 0 <= config.max_logprobs < wanted:
        raise ValueError(
            f"beam_width is {width}, which takes {wanted} logprobs a beam, and the engine gives"
            f" {config.max_logprobs} at most: open it with max_logprobs={wanted}, or lower beam_width"
        )
    if config.logprobs_mode.endswith("logits"):
        raise ValueError(
            f"beams are ranked by logprobs, and logprobs_mode is {config.logprobs_mode!r}: open the engine"
            " with 'raw_logprobs' or 'processed_logprobs'"
        )
    return wanted
