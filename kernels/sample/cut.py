"""Rows with min-p, top-k or top-p: the smallest logit that stays, found by weighing, and the draw above it.

Triton device functions for one program a row. A row's survivors are the tokens over a boundary logit and
the first few (by id) that equal it: what is left of a stable sort. The boundary is the smallest value v
whose *weight above* is under a target: the count under k, then the mass under p times the mass that k left.

The largest logits of the groups bound it from below at once: k groups whose largest reaches v hold k tokens
that do. Only groups that reach the bound are read again; what is in them is kept aside (values, ids), and
all weighing runs over that. Where that is no bound or too many tokens, weighing reads the row itself.
"""

from __future__ import annotations

import triton
import triton.language as tl
from workbench.kernels.sample.noise import (
    BOUND_OFFSET,
    load_logits,
    race_bound,
    race_value,
    to_key,
    token_words,
)

LOWEST = tl.constexpr(-0x7FFFFFF0)  # under every key


@triton.jit
def draw_cut(
    narrow, wide, adjusted, vocab, word, scale, k, p, least,
    parts, num_parts, groups, found, num_groups, values, kept_ids, bounds, shift,
    WIDE: tl.constexpr, PARTS: tl.constexpr, PARTS_USED: tl.constexpr, GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The token drawn; the boundary goes to `bounds`."""
    part = tl.arange(0, PARTS_USED)
    used = part < num_parts
    tops = tl.load(parts + part, mask=used, other=float("-inf"))
    most = tl.max(tops, 0)
    base = tl.where(most == float("-inf"), 0.0, most) * scale
    masses = tl.load(parts + PARTS + part, mask=used, other=0.0)
    mass = tl.sum(masses * tl.exp2(tops * scale - base), 0)
    floor = tl.where(least > 0.0, base + tl.log2(least), float("-inf"))
    has_k = (k > 0) & (k < vocab)
    has_p = p < 1.0
    highest = to_key(most, shift)

    lowest = _bound_by_groups(
        groups, num_groups, k, has_k, p, least, mass, base, scale, shift, highest, GROUPS,
    )  # fmt: skip
    lowest = tl.where(least > 0.0, tl.maximum(lowest, to_key(floor / scale, shift) - 4), lowest)
    packed, count = _keep_aside(
        narrow, wide, adjusted, vocab, groups, found, num_groups, values, kept_ids, lowest, floor, scale,
        shift, least > 0.0, WIDE, GROUPS, CANDIDATES, GROUP, TILE,
    )  # fmt: skip

    boundary = tl.full((), LOWEST, tl.int32)
    limit = tl.zeros((), tl.float32)  # of the tokens that equal the boundary, how many stay
    ties = tl.zeros((), tl.float32)  # how many there are
    if has_k & (count > k):
        boundary, limit, ties = _cut_by_count(
            narrow, wide, adjusted, packed, count, values, kept_ids, k, lowest, highest, floor, base, scale,
            shift, WIDE, TILE,
        )  # fmt: skip
    if has_p:
        if has_k | (least > 0.0):
            mass = _mass_left(
                narrow, wide, adjusted, packed, count, values, kept_ids, boundary, limit, floor, base, scale,
                shift, WIDE, TILE,
            )  # fmt: skip
        boundary, limit, ties = _cut_by_mass(
            narrow, wide, adjusted, packed, count, values, kept_ids, p, mass, boundary, limit, vocab, lowest,
            highest, floor, base, scale, shift, WIDE, TILE,
        )  # fmt: skip
    token, last = _draw(
        narrow, wide, adjusted, packed, count, values, kept_ids, boundary, limit, ties, floor, word, scale,
        vocab, shift, WIDE, TILE,
    )  # fmt: skip
    # What was not kept aside is cut, too.
    boundary = tl.where(packed, tl.maximum(boundary, lowest - 1), boundary)
    tl.store(bounds, tl.where(boundary <= LOWEST, float("-inf"), _key_value(boundary, shift)))
    tl.store(bounds + 1, last.to(tl.float32, bitcast=True))
    tl.store(bounds + 2, floor)
    return token


@triton.jit
def _cut_by_count(
    narrow, wide, adjusted, packed, count, values, kept_ids, k, lowest, highest, floor, base, scale, shift,
    WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Where the k-th largest is: the boundary, how many that equal it stay, and how many do."""
    nothing = to_key(tl.full((), float("-inf"), tl.float32), shift)  # the key of a masked token
    boundary = _search(
        narrow, wide, adjusted, packed, count, values, kept_ids, k.to(tl.float32),
        tl.maximum(lowest - 1, nothing), highest, base, scale, shift, False, WIDE, TILE,
    )  # fmt: skip
    above, _, ties = _weigh(
        narrow, wide, adjusted, packed, count, values, kept_ids, boundary, floor, base, scale, shift, WIDE,
        TILE,
    )  # fmt: skip
    return boundary, tl.minimum(k.to(tl.float32) - above, ties), ties


@triton.jit
def _mass_left(
    narrow, wide, adjusted, packed, count, values, kept_ids, boundary, limit, floor, base, scale, shift,
    WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The mass that min-p and top-k left."""
    _, mass, _ = _weigh(
        narrow, wide, adjusted, packed, count, values, kept_ids, boundary, floor, base, scale, shift, WIDE,
        TILE,
    )  # fmt: skip
    # The boundary is a key that a token has, and so a number, only if anything equals it.
    one = tl.exp2(_key_value(boundary, shift) * scale - base)
    return mass + tl.where(limit > 0.0, limit * one, 0.0)


@triton.jit
def _cut_by_mass(
    narrow, wide, adjusted, packed, count, values, kept_ids, p, mass, after_k, limit_k, vocab, lowest,
    highest, floor, base, scale, shift, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Where the mass reaches p of what is left: the boundary, how many that equal it stay, how many do."""
    nothing = to_key(tl.full((), float("-inf"), tl.float32), shift)
    target = p * mass
    # Tokens under this weigh less than the 1 - p that are cut, all of them together.
    tail = (1.0 - p) * 0.99 * mass / vocab.to(tl.float32)
    light = to_key((base + tl.log2(tail)) / scale, shift) - 1
    start = tl.maximum(tl.maximum(lowest, after_k) - 1, tl.maximum(nothing, light))
    boundary = _search(
        narrow, wide, adjusted, packed, count, values, kept_ids, target, start, highest, base, scale, shift,
        True, WIDE, TILE,
    )  # fmt: skip
    _, above, ties = _weigh(
        narrow, wide, adjusted, packed, count, values, kept_ids, boundary, floor, base, scale, shift, WIDE,
        TILE,
    )  # fmt: skip
    one = tl.exp2(_key_value(boundary, shift) * scale - base)
    room = tl.where((boundary == after_k) & (limit_k > 0.0), limit_k, ties)
    return boundary, tl.minimum(tl.maximum(tl.ceil((target - above) / one), 1.0), room), ties


@triton.jit
def _key_value(key, shift):
    """The float32 of a key; for that of -0, which no token has, the next lower one."""
    key = tl.where(key == -1, -2, key)
    sign = key >> 31
    bits = (key << shift) | (sign & ((1 << shift) - 1))
    return (bits ^ (sign & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _bound_by_groups(
    groups, num_groups, k, has_k, p, least, mass, base, scale, shift, highest, GROUPS: tl.constexpr
):
    """The largest key that groups enough reach for every survivor to reach it; LOWEST: none is known."""
    place = tl.arange(0, GROUPS)
    top = tl.load(groups + place, mask=place < num_groups, other=float("-inf"))
    key = to_key(top, shift)
    weight = tl.where(has_k, 1.0, tl.exp2(top * scale - base))
    weight = tl.where(top > float("-inf"), weight, 0.0)
    # Slack for a mass that was added in another order. What min-p leaves has to be weighed in full: its
    # floor is the bound then.
    target = tl.where(has_k, k.to(tl.float32), tl.minimum(p * mass * (1.0 + 1e-4), mass))
    bounded = (has_k | ((p < 1.0) & (least <= 0.0))) & (tl.sum(weight, 0) >= target)
    low = tl.where(
        bounded, to_key(tl.min(tl.where(top > float("-inf"), top, float("inf")), 0), shift) - 1, LOWEST
    )
    high = tl.where(bounded, highest, LOWEST)
    while high.to(tl.int64) - low.to(tl.int64) > 1:
        middle = ((low.to(tl.int64) + high.to(tl.int64)) >> 1).to(tl.int32)
        enough = tl.sum(tl.where(key > middle, weight, 0.0), 0) >= target
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return high


@triton.jit
def _keep_aside(
    narrow, wide, adjusted, vocab, groups, found, num_groups, values, kept_ids, lowest, floor, scale,
    shift, has_floor,
    WIDE: tl.constexpr, GROUPS: tl.constexpr, CANDIDATES: tl.constexpr, GROUP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Copy the tokens that reach both bounds, in the order of their ids, if there is room for them.

    Returns:
        Whether they were copied; how many tokens weighing has to look at.
    """
    place = tl.arange(0, GROUPS)
    top = tl.load(groups + place, mask=place < num_groups, other=float("-inf"))
    reached = (to_key(top, shift) >= lowest) & (top * scale >= floor) & (top > float("-inf"))
    spot = tl.cumsum(reached.to(tl.int32), 0) - 1
    tl.store(found + spot, place, mask=reached)
    tl.debug_barrier()
    bounded = (lowest > LOWEST) | has_floor
    num_found = tl.where(bounded, tl.sum(reached.to(tl.int32), 0), 0)
    lane = tl.arange(0, TILE)
    count = tl.zeros((), tl.int32)
    start = tl.zeros((), tl.int32)
    while (start < num_found * GROUP) & (count <= CANDIDATES):
        within = start + lane
        group = tl.load(found + within // GROUP, mask=within < num_found * GROUP, other=0)
        ids = group * GROUP + within % GROUP
        x = load_logits(narrow, wide, adjusted, ids, (within < num_found * GROUP) & (ids < vocab), WIDE)
        kept = (to_key(x, shift) >= lowest) & (x * scale >= floor) & (x > float("-inf"))
        slot = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        room = kept & (slot < CANDIDATES)
        tl.store(values + slot, x, mask=room)
        tl.store(kept_ids + slot, ids, mask=room)
        count += tl.sum(kept.to(tl.int32), 0)
        start += TILE
    tl.debug_barrier()
    packed = bounded & (count <= CANDIDATES)
    return packed, tl.where(packed, count, vocab)


@triton.jit
def _tile(narrow, wide, adjusted, packed, count, values, kept_ids, place, WIDE: tl.constexpr):
    """Logits and ids of a tile of the tokens to weigh."""
    inside = place < count
    if packed:
        x = tl.load(values + place, mask=inside, other=float("-inf"))
        ids = tl.load(kept_ids + place, mask=inside, other=0)
    else:
        x = load_logits(narrow, wide, adjusted, place, inside, WIDE)
        ids = place
    return x, ids


@triton.jit
def _search(
    narrow, wide, adjusted, packed, count, values, kept_ids, target, low, high, base, scale, shift,
    BY_MASS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The smallest key in (low, high] over which the tokens weigh less than `target`.

    Three pivots a pass; `low` is known to be too small and `high` to be large enough. No pivot is under
    min-p's floor, nor is what is over it.
    """
    lane = tl.arange(0, TILE)
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    while high - low > 1:
        gap = high - low
        pivot1 = low + tl.maximum(gap // 4, 1)
        pivot2 = low + tl.maximum(gap // 2, 1)
        pivot3 = low + tl.maximum(gap - gap // 4 - 1, 1)
        value1 = _key_value(pivot1.to(tl.int32), shift)
        value2 = _key_value(pivot2.to(tl.int32), shift)
        value3 = _key_value(pivot3.to(tl.int32), shift)
        weight1 = tl.zeros([TILE], tl.float32)
        weight2 = tl.zeros([TILE], tl.float32)
        weight3 = tl.zeros([TILE], tl.float32)
        for start in range(0, count, TILE):
            x, _ = _tile(narrow, wide, adjusted, packed, count, values, kept_ids, start + lane, WIDE)
            weight = tl.exp2(x * scale - base) if BY_MASS else 1.0
            weight1 += tl.where(x > value1, weight, 0.0)
            weight2 += tl.where(x > value2, weight, 0.0)
            weight3 += tl.where(x > value3, weight, 0.0)
        under1 = tl.sum(weight1, 0) < target
        under2 = tl.sum(weight2, 0) < target
        under3 = tl.sum(weight3, 0) < target
        high = tl.where(under1, pivot1, tl.where(under2, pivot2, tl.where(under3, pivot3, high)))
        low = tl.where(under1, low, tl.where(under2, pivot1, tl.where(under3, pivot2, pivot3)))
    return high.to(tl.int32)


@triton.jit
def _weigh(
    narrow, wide, adjusted, packed, count, values, kept_ids, boundary, floor, base, scale, shift,
    WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Count and mass of the tokens over the boundary, and the count of those that equal it."""
    lane = tl.arange(0, TILE)
    above = tl.zeros([TILE], tl.float32)
    mass = tl.zeros([TILE], tl.float32)
    equal = tl.zeros([TILE], tl.float32)
    for start in range(0, count, TILE):
        x, _ = _tile(narrow, wide, adjusted, packed, count, values, kept_ids, start + lane, WIDE)
        y = x * scale
        alive = (y >= floor) & (x > float("-inf"))
        key = to_key(x, shift)
        above += (alive & (key > boundary)).to(tl.float32)
        mass += tl.where(alive & (key > boundary), tl.exp2(y - base), 0.0)
        equal += (alive & (key == boundary)).to(tl.float32)
    return tl.sum(above, 0), tl.sum(mass, 0), tl.sum(equal, 0)


@triton.jit
def _draw(
    narrow, wide, adjusted, packed, count, values, kept_ids, boundary, limit, ties, floor, word, scale, vocab,
    shift, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The winner of the race among the survivors, and the last id that stays of those at the boundary."""
    lane = tl.arange(0, TILE)
    best = tl.full((), float("-inf"), tl.float32)
    token = tl.zeros((), tl.int32)
    last = tl.zeros((), tl.int32) + tl.where(limit < ties, 0, vocab)
    seen = tl.zeros((), tl.float32)
    for start in range(0, count, TILE):
        x, ids = _tile(narrow, wide, adjusted, packed, count, values, kept_ids, start + lane, WIDE)
        key = to_key(x, shift)
        alive = (x * scale >= floor) & (x > float("-inf"))
        equal = alive & (key == boundary)
        if limit < ties:
            order = seen + tl.cumsum(equal.to(tl.float32), 0)
            stays = equal & (order <= limit)
            last = tl.maximum(last, tl.max(tl.where(stays, ids, 0), 0))
            seen += tl.sum(equal.to(tl.float32), 0)
        else:
            stays = equal
        alive = (alive & (key > boundary)) | stays
        words = token_words(word, ids)
        bound = tl.where(alive, race_bound(x, words, scale), float("-inf"))
        if tl.max(bound, 0) + BOUND_OFFSET + 1e-4 + 1e-6 * tl.abs(best) > best:
            value = tl.where(alive, race_value(x, words, scale), float("-inf"))
            value_best = tl.max(value, 0)
            if value_best > best:
                best = value_best
                token = tl.min(tl.where(value == value_best, ids, 0x7FFFFFFF), 0)
    return token, last
