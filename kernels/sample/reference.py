"""Drawing one token a row from logits, in torch. Knows nothing of requests: options are columns.

Random numbers are a hash of (seed, position, token), not a stream: a draw depends on its own request alone,
and any device that computes the same hash draws the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GREEDY_BELOW = 1e-5
_MASK = 0xFFFF_FFFF


class Options(NamedTuple):
    """How each row is drawn; every tensor is [m] on the logits' device."""

    temperature: Tensor  # float32; under 1e-5: the largest logit
    top_k: Tensor  # int64; 0: off
    top_p: Tensor  # float32; 1: off
    min_p: Tensor  # float32; 0: off
    seeds: Tensor  # int64
    positions: Tensor  # int64; place in its request of the token that is drawn


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
