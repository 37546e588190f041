"""Logprob and rank of a chosen token and the best tokens of each row, straight from the logits. Triton.

Two launches. The first, many programs a row, reads the logits once: the largest of every group of 128
tokens, the mass, and how many tokens beat the chosen one. The second, one program a row, takes the k best
one after the other out of the group that has the best left, reading k groups. Extra memory: 6 KB a row at
150,000 tokens; a caller with many rows (the logprobs of a prompt) hands them over in slices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 128
_TILE = 2048
_MAX_PARTS = 128
_PROGRAMS = 132 * 32  # of the first launch, over all rows
_LOG2_E = tl.constexpr(1.4426950408889634)


class Logprobs(NamedTuple):
    """Rows in the order of the logits."""

    sampled: Tensor  # [m] float32; of the chosen token
    ranks: Tensor  # [m] int32; 1 + the number of tokens with a larger logit
    top_ids: Tensor  # [m, k] int32; descending, the lower id first among equals
    top_logprobs: Tensor  # [m, k] float32


def logprobs(logits: Tensor, chosen: Tensor, k: int, *, as_logits: bool = False) -> Logprobs:
    """Logprobs of the chosen and the best tokens.

    Args:
        logits: [m, vocab] bfloat16, float16 or float32; rows may be strided.
        chosen: [m] int64 or int32.
        k: best tokens to list; time grows by about a microsecond for each.
        as_logits: give the logits themselves.

    Raises:
        ValueError: k is negative or larger than the vocabulary.
    """
    rows, vocab = logits.shape
    if not 0 <= k <= vocab:
        raise ValueError(f"{k} best tokens of a vocabulary of {vocab}: ask for 0 to {vocab}")
    device = logits.device
    num_groups = -(-vocab // GROUP)
    num_parts, span = _split(rows, vocab)
    groups = torch.empty((rows, num_groups), dtype=torch.float32, device=device)
    parts = torch.empty((rows, 3, _MAX_PARTS), dtype=torch.float32, device=device)
    found = Logprobs(
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty((rows, k), dtype=torch.int32, device=device),
        torch.empty((rows, k), dtype=torch.float32, device=device),
    )
    _survey[(rows, num_parts)](
        logits,
        logits.stride(0),
        vocab,
        chosen,
        groups,
        num_groups,
        parts,
        span,
        PARTS=_MAX_PARTS,
        GROUP=GROUP,
        TILE=_TILE,
        num_warps=4,
    )
    _pick[(rows,)](
        logits,
        logits.stride(0),
        vocab,
        chosen,
        groups,
        num_groups,
        parts,
        num_parts,
        *found,
        k,
        AS_LOGITS=as_logits,
        PARTS=_MAX_PARTS,
        GROUPS=triton.next_power_of_2(num_groups),
        GROUP=GROUP,
        num_warps=4,
    )
    return found


def _split(rows: int, vocab: int) -> tuple[int, int]:
    """Programs a row, and tokens each of them takes: whole tiles."""
    tiles = -(-vocab // _TILE)
    wanted = max(1, min(tiles, _MAX_PARTS, -(-_PROGRAMS // rows)))
    span = -(-tiles // wanted) * _TILE
    return -(-vocab // span), span


@triton.jit
def _survey(
    logits,
    stride,
    vocab,
    chosen,
    groups,
    num_groups,
    parts,
    span,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    COUNT: tl.constexpr = TILE // GROUP
    row = tl.program_id(0).to(tl.int64)  # the first axis: a slice may hold more rows than the others allow
    part = tl.program_id(1)
    first = part * span
    end = tl.minimum(first + span, vocab)
    line = tl.arange(0, COUNT)
    within = tl.arange(0, GROUP)
    mine = tl.load(logits + row * stride + tl.load(chosen + row)).to(tl.float32)
    most = tl.full([COUNT], float("-inf"), tl.float32)
    mass = tl.zeros([COUNT], tl.float32)
    larger = tl.zeros([COUNT], tl.float32)
    for start in range(first, end, TILE):
        ids = start + line[:, None] * GROUP + within[None, :]
        x = tl.load(logits + row * stride + ids, mask=ids < end, other=float("-inf")).to(tl.float32)
        top = tl.max(x, 1)
        group = start // GROUP + line
        tl.store(groups + row * num_groups + group, top, mask=group < num_groups)
        larger += tl.sum((x > mine).to(tl.float32), 1)
        newer = tl.maximum(most, top)
        base = tl.where(newer == float("-inf"), 0.0, newer)
        # Subtracted before it is scaled: large logits differ in digits that their products no longer hold.
        powers = tl.exp2((x - base[:, None]) * _LOG2_E)
        mass = mass * tl.exp2((most - base) * _LOG2_E) + tl.sum(powers, 1)
        most = newer
    top = tl.max(most, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    here = parts + row * (3 * PARTS) + part
    tl.store(here, top)
    tl.store(here + PARTS, tl.sum(mass * tl.exp2((most - base) * _LOG2_E), 0))
    tl.store(here + 2 * PARTS, tl.sum(larger, 0))


@triton.jit(do_not_specialize=["num_parts", "k"])
def _pick(
    logits,
    stride,
    vocab,
    chosen,
    groups,
    num_groups,
    parts,
    num_parts,
    sampled,
    ranks,
    top_ids,
    top_logprobs,
    k,
    AS_LOGITS: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    part = parts + row * (3 * PARTS) + tl.arange(0, PARTS)
    used = tl.arange(0, PARTS) < num_parts
    tops = tl.load(part, mask=used, other=float("-inf"))
    masses = tl.load(part + PARTS, mask=used, other=0.0)
    most = tl.max(tops, 0)
    whole = tl.sum(masses * tl.exp2((tops - most) * _LOG2_E), 0)
    norm = tl.log(whole)  # x - most - norm loses less than x - (most + norm)
    if AS_LOGITS:
        most = 0.0
        norm = 0.0
    mine = tl.load(logits + tl.load(chosen + row)).to(tl.float32)
    tl.store(sampled + row, mine - most - norm)
    tl.store(ranks + row, 1 + tl.sum(tl.load(part + 2 * PARTS, mask=used, other=0.0), 0).to(tl.int32))

    place = tl.arange(0, GROUPS)
    exists = place < num_groups
    top = tl.load(groups + row * num_groups + place, mask=exists, other=float("-inf"))
    taken = tl.full([GROUPS], -1, tl.int32)  # of the tokens that equal a group's best, the last one listed
    for i in range(k):
        best = tl.max(top, 0)
        group = tl.min(tl.where((top == best) & exists, place, GROUPS), 0)
        after = tl.max(tl.where(place == group, taken, -1), 0)
        ids = group * GROUP + tl.arange(0, GROUP)
        x = tl.load(logits + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
        token = tl.min(tl.where((x == best) & (ids > after), ids, vocab - 1), 0)
        left = (ids < vocab) & ((x < best) | ((x == best) & (ids > token)))
        following = tl.max(tl.where(left, x, float("-inf")), 0)
        taken = tl.where(place == group, tl.where(following == best, token, -1), taken)
        # A group that is used up must not stand for a token of -inf.
        exists = exists & ((place != group) | (tl.max(left.to(tl.int32), 0) > 0))
        top = tl.where(place == group, following, top)
        tl.store(top_ids + row * k + i, token)
        tl.store(top_logprobs + row * k + i, best - most - norm)
