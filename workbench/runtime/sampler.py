"""From logits to tokens: each row's options applied in a fixed order, logprobs taken on the way.

raw logprobs -> float32 -> allowed ids -> min_tokens, logit bias -> penalties -> grammar masks -> greedy rows
done -> temperature -> min-p -> top-k, top-p -> draw. Knows requests only as rows of options and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition
from workbench.engine.result import LogprobColumns
from workbench.kernels.sample.reference import Options, draw, shape_logits, top_logprobs
from workbench.kernels.token_mask.reference import mask_tokens
from workbench.params import SamplingParams
from workbench.runtime.batch import Longs
from workbench.runtime.constraints import Constrained

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]

NEVER = float("-inf")


# Of the rows that sampled: logprob, rank, top ids, top logprobs, entropy, as in LogprobColumns.
Columns = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Sampled(NamedTuple):
    token_ids: Tensor  # [m] int64, device
    logprobs: Columns | None  # device


class Sampler:
    """Draws a token for each row that samples."""

    def __init__(self, mode: LogprobsMode) -> None:
        self.mode = mode

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
        """One token for each row of `logits` [m, vocab].

        Args:
            rows: [m]; batch rows. lengths: [m]; the tokens each has so far.
            additions: what is known of each batch row.
            tokens: [max_rows, max_length] int32, device; the rows' tokens.
            logprobs: top logprobs wanted of every row, whatever it asked; 0: none.
            constrained: lines that grammars let only some tokens follow.
        """
        asked = [additions[row] for row in rows.tolist()]
        wanted = [a.params.logprobs for a in asked if a.params.logprobs is not None]
        if logprobs:
            wanted.append(logprobs)
        raw = logits
        logits = logits.float()
        logits = _adjust(logits, asked, rows, lengths, tokens)
        if constrained is not None:  # no change before or after lifts a token that is masked
            lines, bits = torch.from_numpy(constrained.lines), torch.from_numpy(constrained.bits)
            mask_tokens(logits, lines.to(logits.device), bits.to(logits.device))
        if all(a.params.is_greedy for a in asked):
            shaped, chosen = logits, logits.argmax(-1)
        else:
            options = _options(asked, lengths, logits.device)
            shaped = shape_logits(logits, options)
            chosen = draw(shaped, options)
        if not wanted:
            return Sampled(chosen, None)
        source = raw if self.mode.startswith("raw") else shaped
        top = top_logprobs(source, chosen, max(wanted), logits=self.mode.endswith("logits"))
        return Sampled(chosen, (*top, entropy(source)))


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


def _adjust(logits: Tensor, asked: list[Addition], rows: Longs, lengths: Longs, tokens: Tensor) -> Tensor:
    """Everything but temperature and cut-offs, for the rows that asked for it."""
    touched = [line for line, a in enumerate(asked) if is_adjusted(a.params)]
    if not touched:
        return logits
    logits = logits.clone()  # float() of float32 logits is those logits, and raw logprobs need them
    for line in touched:
        added = asked[line]
        known = tokens[int(rows[line]), : int(lengths[line])].long()
        prompt, output = known[: added.num_prompt_tokens], known[added.num_prompt_tokens :]
        _restrict(logits[line], added, len(output))
        _penalise(logits[line], added.params, prompt, output)
    return logits


def is_adjusted(p: SamplingParams) -> bool:
    plain = p.repetition_penalty == 1 and not p.frequency_penalty and not p.presence_penalty
    limited = p.allowed_token_ids is not None or p.structured_outputs is not None
    return not plain or p.min_tokens > 0 or bool(p.logit_bias) or limited


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
