"""Drawing one token a row from logits, in torch. Knows nothing of requests: options are columns.

Random numbers are a hash of (seed, position, token), not a stream: a draw depends on its own request alone,
and any device that computes the same hash draws the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
IN_PROMPT = 1 << 30  # in a count: the prompt holds the token
_MASK = 0xFFFF_FFFF


class Options(NamedTuple):
    """How each row is drawn; every tensor is [m] on the logits' device."""

    temperature: Tensor  # float32; under 1e-5: the largest logit
    top_k: Tensor  # int64; 0: off
    top_p: Tensor  # float32; 1: off
    min_p: Tensor  # float32; 0: off
    seeds: Tensor  # int64
    positions: Tensor  # int64; place in its request of the token that is drawn


class Adjustments(NamedTuple):
    """What rows ask to be changed in their logits; columns are [m] on the logits' device."""

    slots: Tensor  # int32; line of the adjusted logits that the row's go to; -1: it asks for nothing
    count_slots: Tensor  # int32; line of `counts`; -1: no penalties
    offset_slots: Tensor  # int32; line of `offsets`; -1: neither bias nor allowed ids
    counts: Tensor  # [., vocab] int32; how often a token was drawn, and IN_PROMPT
    offsets: Tensor  # [., vocab] float32; bias; -inf where an id is not allowed
    repetition: Tensor  # float32; of tokens drawn or in the prompt; 1: off
    frequency: Tensor  # float32; of tokens drawn; 0: off
    presence: Tensor  # float32; of tokens drawn; 0: off
    stops: Tensor  # [m, n] int32; ids held back; -1: none
    stops_until: Tensor  # int32; position from which they may be drawn


class Adjusted(NamedTuple):
    """Float32 logits that stand in for those of some rows."""

    values: Tensor  # [slots, vocab] float32
    slots: Tensor  # [m] int32; -1: the row's own logits stand


def adjust(logits: Tensor, positions: Tensor, adjustments: Adjustments, values: Tensor) -> Adjusted:
    """Write the adjusted logits of the rows that have a slot to their lines of `values`.

    In this order: allowed ids, stops held back, bias (-inf is beyond any bias), repetition penalty, frequency
    and presence penalties.

    Args:
        logits: [m, vocab]. positions: [m]; place in its request of the token that is drawn.
        values: [slots, vocab] float32, written.
    """
    columns = (adjustments.slots, adjustments.count_slots, adjustments.offset_slots)
    lines = torch.stack([column.long() for column in columns]).T.tolist()
    for row, (slot, count_slot, offset_slot) in enumerate(lines):
        if slot < 0:
            continue
        line = logits[row].to(values.dtype)
        if offset_slot >= 0:
            line = line + adjustments.offsets[offset_slot]
        if positions[row] < adjustments.stops_until[row]:
            stops = adjustments.stops[row].long()
            line = line.index_fill(0, stops[stops >= 0], float("-inf"))
        if count_slot >= 0:
            line = _penalise(line, adjustments, row, adjustments.counts[count_slot])
        values[slot] = line
    return Adjusted(values, adjustments.slots)


def _penalise(line: Tensor, adjustments: Adjustments, row: int, counts: Tensor) -> Tensor:
    repetition = adjustments.repetition[row]
    repeated = torch.where(line > 0, line / repetition, line * repetition)
    line = torch.where(counts != 0, repeated, line)
    drawn = counts & (IN_PROMPT - 1)
    lower = adjustments.frequency[row] * drawn + adjustments.presence[row]
    return torch.where(drawn > 0, line - lower, line)


def shape_logits(logits: Tensor, options: Options) -> Tensor:
    """Temperature, then min-p, then top-k and top-p: float32 logits [m, vocab] with what is cut off at -inf.

    Rows under the greedy temperature keep their logits.
    """
    greedy = options.temperature < GREEDY_BELOW
    shaped = logits / torch.where(greedy, 1.0, options.temperature)[:, None]
    if (options.min_p > 0).any():
        shaped = _cut_min_p(shaped, options.min_p)
    if (options.top_k > 0).any() or (options.top_p < 1).any():
        shaped = _cut_top(shaped, options.top_k, options.top_p)
    return torch.where(greedy[:, None], logits, shaped)


def _cut_min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    # p >= min_p * p_max, in logarithms: x - x_max >= log(min_p); log 0 = -inf keeps everything.
    floor = logits.amax(-1, keepdim=True) + min_p.log()[:, None]
    return logits.masked_fill(logits < floor, float("-inf"))


def _cut_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the k largest, and of these the smallest set whose probability reaches p (at least one)."""
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    vocab = logits.shape[-1]
    place = torch.arange(vocab, device=logits.device)
    limit = torch.where(top_k > 0, top_k, vocab)
    ordered = ordered.masked_fill(place >= limit[:, None], float("-inf"))
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    # top_p = 1 is off: rounding in the sum must not cut the tail.
    cut = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    cut[:, 0] = False
    ordered = ordered.masked_fill(cut, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def draw(shaped: Tensor, options: Options) -> Tensor:
    """One token id a row, int64 [m]: the largest logit, or a draw from the softmax of the row.

    The exponential race: with e ~ Exp(1) for each token, argmax p / e is distributed as p.
    """
    chosen = shaped.argmax(-1)
    rows = (options.temperature >= GREEDY_BELOW).nonzero()[:, 0]
    if len(rows):
        part = shaped if len(rows) == len(shaped) else shaped[rows]
        noise = exponential(options.seeds[rows], options.positions[rows], shaped.shape[-1])
        chosen[rows] = (part.softmax(-1) / noise).argmax(-1)
    return chosen


def exponential(seeds: Tensor, positions: Tensor, vocab: int) -> Tensor:
    """Exp(1) variates [m, vocab] float32, a function of (seed, position, token) alone."""
    low, high = seeds & _MASK, (seeds >> 32) & _MASK
    row = mix(mix(low ^ mix(high ^ 0x9E37_79B9)) + positions)
    token = torch.arange(vocab, device=seeds.device) * 0x9E37_79B1
    bits = mix(row[:, None] ^ (token & _MASK)[None])
    # 32 bits to (0, 1): small values, whose tokens win, keep their full precision.
    uniform = (bits.to(torch.float32) + 0.5) * (1.0 / 4294967296.0)
    return -torch.log1p(-uniform.clamp_(max=1.0 - 2.0**-24))


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words, held in int64, each bit of which depends on every bit of the input.

    Two rounds of multiply and xor-shift; the constants are those of C. Wellons' search ("lowbias32").
    """
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB_352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846C_A68B) & _MASK
    return x ^ (x >> 16)


def top_logprobs(
    source: Tensor, chosen: Tensor, count: int, *, logits: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logprob and rank of the chosen tokens [m], then ids and logprobs of the `count` best [m, count].

    With `logits` the values are the logits themselves. A rank is 1 + the number of larger values.
    """
    values = source.float() if logits else source.log_softmax(-1, dtype=torch.float32)
    sampled = values.gather(-1, chosen[:, None])
    ranks = 1 + (values > sampled).sum(-1)
    best, ids = values.topk(count, dim=-1)
    return sampled[:, 0], ranks, ids, best
