"""From logits to tokens: each row's options applied in a fixed order, logprobs taken on the way.

raw logprobs -> float32 -> allowed ids -> min_tokens, logit bias, logits processors that may change the
largest -> penalties -> greedy rows done -> temperature -> the other logits processors, min-p -> top-k, top-p
-> draw. Knows requests only as rows of options and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition
from workbench.engine.result import Failure, LogprobColumns
from workbench.kernels.sample.reference import GREEDY_BELOW, Options, draw, shape_logits, top_logprobs
from workbench.params import SamplingParams
from workbench.runtime.batch import Longs
from workbench.runtime.processing import Passage, Processors

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]

NEVER = float("-inf")


# Of the rows that sampled: logprob, rank, top ids, top logprobs, entropy, as in LogprobColumns.
Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Sampled(NamedTuple):
    token_ids: Tensor  # [m] int64, device
    logprobs: Columns | None  # device
    failed: tuple[Failure, ...] = ()  # rows whose tokens count for nothing


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
    ) -> Sampled:
        """One token for each row of `logits` [m, vocab].

        Args:
            rows: [m]; batch rows. lengths: [m]; the tokens each has so far.
            additions: what is known of each batch row.
            tokens: [max_rows, max_length] int32, device; the rows' tokens.
            logprobs: top logprobs wanted of every row, whatever it asked; 0: none.
        """
        asked = [additions[row] for row in rows.tolist()]
        wanted = [a.params.logprobs for a in asked if a.params.logprobs is not None]
        if logprobs:
            wanted.append(logprobs)
        raw = logits
        logits = logits.float()
        passage = None if self._processors is None else self._processors.begin(asked, rows, lengths, tokens)
        logits = _adjust(logits, asked, rows, lengths, tokens, passage)
        if all(a.params.is_greedy for a in asked):
            shaped, chosen = logits, logits.argmax(-1)
        else:
            options = _options(asked, lengths, logits.device)
            shaped = shape_logits(*_heated(logits, options, passage))
            chosen = draw(shaped, options)
        failed = () if passage is None else passage.failures(rows)
        if not wanted:
            return Sampled(chosen, None, failed)
        source = raw if self.mode.startswith("raw") else shaped
        top = top_logprobs(source, chosen, max(wanted), logits=self.mode.endswith("logits"))
        return Sampled(chosen, (*top, entropy(source)), failed)


def entropy(logits: Tensor) -> Tensor:
    """Of each row's distribution, in nats: [m] float32 of [m, vocab].

    A few rows at a time, for in float32 all of them may take gigabytes.
    """
    parts = [torch.special.entr(part.softmax(-1, dtype=torch.float32)).sum(-1) for part in logits.split(64)]
    return torch.cat(parts)


def to_columns(logprobs: Columns) -> LogprobColumns:
    """Bring logprobs to the host."""
    sampled, ranks, ids, best, entropies = (tensor.cpu().numpy() for tensor in logprobs)
    return LogprobColumns(sampled, ranks.astype(np.int32), ids.astype(np.int32), best, entropies)


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
    for line in touched:
        _restrict(logits[line], asked[line], int(lengths[line]) - asked[line].num_prompt_tokens)
    if passage is not None:
        logits = passage.change(logits)
    for line in touched:
        added = asked[line]
        known = tokens[int(rows[line]), : int(lengths[line])].long()
        prompt, output = known[: added.num_prompt_tokens], known[added.num_prompt_tokens :]
        _penalise(logits[line], added.params, prompt, output)
    return logits


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
    plain = p.repetition_penalty == 1 and not p.frequency_penalty and not p.presence_penalty
    return not plain or p.min_tokens > 0 or bool(p.logit_bias) or p.allowed_token_ids is not None


def _restrict(logits: Tensor, added: Addition, num_output: int) -> None:
    """Allowed ids, min_tokens and logit bias, on one row [vocab] in place."""
    params = added.params
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(params.allowed_token_ids, device=logits.device)
        kept = logits[allowed]
        logits.fill_(NEVER)
        logits[allowed] = kept
    if num_output < params.min_tokens:
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
