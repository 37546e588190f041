"""From logits to tokens: each row's options applied in a fixed order, logprobs taken on the way.

raw logprobs -> float32 -> allowed ids -> bad words -> min_tokens, logit bias, logits processors that may
change the largest -> penalties -> grammar masks -> greedy rows done -> temperature -> the other logits
processors, min-p -> top-k, top-p -> draw. Knows requests only as rows of options and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.engine.plan import Addition, Ints
from workbench.engine.result import Failure
from workbench.kernels.logprobs.reference import logprobs as logprobs_of
from workbench.kernels.sample.reference import GREEDY_BELOW, Options, draw, shape_logits
from workbench.kernels.token_mask.reference import mask_tokens
from workbench.params import SamplingParams
from workbench.runtime.batch import Longs
from workbench.runtime.constraints import Constrained
from workbench.runtime.logprobs import Columns, Wanted, read, wanted_by
from workbench.runtime.processing import Passage, Processors

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]

NEVER = float("-inf")


class Sampled(NamedTuple):
    token_ids: Tensor  # [m + e] int64, device
    logprobs: Columns | None = None  # device; None when nobody wants any
    wanted: Wanted | None = None  # what the logprobs are
    failed: tuple[Failure, ...] = ()  # rows whose tokens count for nothing
    lost: Ints | None = None  # lines that could not be sampled; None: there are none


class Sampler:
    """Draws a token for each row that samples."""

    def __init__(self, mode: LogprobsMode, processors: Processors | None = None) -> None:
        self.mode = mode
        self._processors = processors

    def sample(
        self,
        logits: Tensor,
        rows: Longs,
        lengths: Longs,
        additions: Mapping[int, Addition],
        tokens: Tensor,
        logprobs: int = 0,
        constrained: Constrained | None = None,
    ) -> Sampled:
        """One token for each line of `logits` [m, vocab].

        Args:
            rows: [m]; batch rows: each once, then again for what is sampled behind its drafts.
            lengths: [m]; the tokens that each is sampled behind.
            additions: what is known of each batch row.
            tokens: [max_rows, max_length] int32, device; the rows' tokens.
            logprobs: top logprobs wanted of every row, whatever it asked; 0: none.
            constrained: lines that grammars let only some tokens follow.
        """
        asked = [additions[row] for row in rows.tolist()]
        wanted = wanted_by([(line, a.params) for line, a in enumerate(asked)], len(asked), logprobs)
        raw = logits
        logits = logits.float()
        passage = None if self._processors is None else self._processors.begin(asked, rows, lengths, tokens)
        logits = _adjust(logits, asked, rows, lengths, tokens, passage)
        if constrained is not None:  # no change before or after lifts a token that is masked
            lines, bits = torch.from_numpy(constrained.lines), torch.from_numpy(constrained.bits)
            mask_tokens(logits, lines.to(logits.device), bits.to(logits.device))
        if all(a.params.is_greedy for a in asked):
            shaped, chosen = logits, logits.argmax(-1)
        else:
            options = _options(asked, lengths, logits.device)
            shaped = shape_logits(*_heated(logits, options, passage))
            chosen = draw(shaped, options)
        failed, lost = ((), None) if passage is None else passage.failures(rows)
        if wanted is None:
            return Sampled(chosen, failed=failed, lost=lost)
        source = raw if self.mode.startswith("raw") else shaped
        columns = read(source, chosen, wanted, logprobs_of, as_logits=self.mode.endswith("logits"))
        return Sampled(chosen, columns, wanted, failed, lost)


def _options(asked: list[Addition], lengths: Longs, device: torch.device) -> Options:
    params = [a.params for a in asked]

    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Options(
        temperature=column([p.temperature for p in params], torch.float32),
        top_k=column([p.top_k for p in params], torch.int64),
        top_p=column([p.top_p for p in params], torch.float32),
        min_p=column([p.min_p for p in params], torch.float32),
        seeds=column([a.seed for a in asked], torch.int64),
        positions=torch.from_numpy(lengths).to(device),
    )


def _adjust(
    logits: Tensor,
    asked: list[Addition],
    rows: Longs,
    lengths: Longs,
    tokens: Tensor,
    passage: Passage | None,
) -> Tensor:
    """Everything but temperature and cut-offs, for the rows that asked for it."""
    touched = [line for line, a in enumerate(asked) if is_adjusted(a.params)]
    if not touched and passage is None:
        return logits
    logits = logits.clone()  # float() of float32 logits is those logits, and raw logprobs need them
    texts = {
        line: _split(tokens[int(rows[line]), : int(lengths[line])].long(), asked[line]) for line in touched
    }
    for line, (_, output) in texts.items():
        _restrict(logits[line], asked[line], output)
    if passage is not None:
        logits = passage.change(logits)
    for line, (prompt, output) in texts.items():
        _penalise(logits[line], asked[line].params, prompt, output)
    return logits


def _split(known: Tensor, added: Addition) -> tuple[Tensor, Tensor]:
    """A row's tokens: the prompt's, and what was generated."""
    return known[: added.num_prompt_tokens], known[added.num_prompt_tokens :]


def _heated(logits: Tensor, options: Options, passage: Passage | None) -> tuple[Tensor, Options]:
    """Logits and options for `shape_logits`: where processors come between the two, the temperature is on."""
    if passage is None or not passage.shapes:
        return logits, options
    greedy = options.temperature < GREEDY_BELOW
    heated = logits / torch.where(greedy, 1.0, options.temperature)[:, None]
    shaped = passage.shape(heated, (~greedy).nonzero()[:, 0].tolist())
    shaped = torch.where(greedy[:, None], logits, shaped)
    return shaped, options._replace(temperature=options.temperature.where(greedy, 1.0))


def is_adjusted(p: SamplingParams) -> bool:
    return p.adjusts_logits or p.structured_outputs is not None


def _restrict(logits: Tensor, added: Addition, output: Tensor) -> None:
    """Allowed ids, bad words, min_tokens and logit bias, on one row [vocab] in place."""
    params = added.params
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[allowed]
        logits.fill_(NEVER)
        logits[allowed] = kept
    for *head, last in added.bad_words:
        begin = len(output) - len(head)
        if begin >= 0 and output[begin:].tolist() == head:
            logits[last] = NEVER
    if len(output) < params.min_tokens:
        stops = [*added.eos_token_ids, *(params.stop_token_ids or ())]
        logits[torch.tensor(stops, dtype=torch.int64, device=logits.device)] = NEVER
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=logits.device)
        logits[ids] += torch.tensor(
            list(params.logit_bias.values()), dtype=logits.dtype, device=logits.device
        )


def _penalise(logits: Tensor, params: SamplingParams, prompt: Tensor, output: Tensor) -> None:
    """Repetition (over prompt and output), frequency and presence (over output), on one row in place."""
    if params.repetition_penalty != 1:
        seen = torch.cat([prompt, output]).unique()
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty or params.presence_penalty:
        ids, counts = output.unique(return_counts=True)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty
