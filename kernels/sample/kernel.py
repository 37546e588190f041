"""One token a row straight from the logits, without a sort and without a float32 copy of them. Triton.

Two launches, whatever the rows ask for, so that one graph serves any mix:

* scan, many programs a row. Plain rows: the chunk of 8 tokens in which the winner of the race may lie, and
  a bound on all others. Rows with cut-offs: the largest logit of every group of 128 tokens, and the mass.
* finish, one program a row. Plain rows: the exact race among the chunks found; where the bound says that a
  winner may have been missed (rarely), that part is raced again in full. Rows with cut-offs:
  cut.py.

Options are read on the device. Knows nothing of requests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from workbench.kernels.sample.cut import draw_cut
from workbench.kernels.sample.noise import (
    BOUND_OFFSET,
    LOG2_E,
    load_logits,
    race_bound,
    race_value,
    row_word,
    token_words,
    wide_row,
)
from workbench.kernels.sample.reference import Adjusted, Options

GROUP = 128  # tokens that share a largest logit; a chunk of 8 is one load of 16 bytes
CANDIDATES = 4096  # tokens a row may keep aside; more are read from the logits again
MAX_PARTS = 256
_PROGRAMS = 132 * 32  # of the scan, over all rows: a few rounds of an H200
_TILE = 2048  # tokens a program takes at a time
_SHIFT = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}  # low bits of a float32 that stay empty


class Workspace(NamedTuple):
    """Where the first launch leaves what the second reads; for as many rows as it has, one vocabulary."""

    parts: Tensor  # [rows, 3, MAX_PARTS] float32: bound, chunk (its bits), next bound | max, mass
    groups: Tensor  # [rows, vocab / GROUP] float32; the largest logit of each group
    found: Tensor  # [rows, vocab / GROUP] int32; groups that hold a candidate
    values: Tensor  # [rows, candidates] float32; candidates' logits
    ids: Tensor  # [rows, candidates] int32
    bounds: Tensor  # [rows, 3] float32: smallest logit kept, last id kept of those (its bits), min-p's floor


def make_workspace(rows: int, vocab: int, device: torch.device, candidates: int = CANDIDATES) -> Workspace:
    """Room for `rows` rows: about 45 KB each at 150,000 tokens."""
    groups = -(-vocab // GROUP)

    def room(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty((rows, *shape), dtype=dtype, device=device)

    return Workspace(
        parts=room(torch.float32, 3, MAX_PARTS),
        groups=room(torch.float32, groups),
        found=room(torch.int32, groups),
        values=room(torch.float32, candidates),
        ids=room(torch.int32, candidates),
        bounds=room(torch.float32, 3),
    )


def sample(
    logits: Tensor,
    options: Options,
    *,
    adjusted: Adjusted | None = None,
    workspace: Workspace | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Draw a token for each row, by the same hash and the same rules as the reference.

    Args:
        logits: [m, vocab] bfloat16, float16 or float32; rows may be strided.
        options: each [m] on the device; integers may be int32 or int64.
        adjusted: logits that stand in for some rows'.
        workspace: of at least m rows; allocated unless given.
        out: [m] int64; allocated unless given.

    Returns:
        [m] int64. Where rounding ties two tokens, the reference may take the other one.
    """
    rows, vocab = logits.shape
    if out is None:
        out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if workspace is None:
        workspace = make_workspace(rows, vocab, logits.device)
    wide, slots = (logits, options.seeds) if adjusted is None else adjusted
    row = (logits, logits.stride(0), vocab, wide, slots, *options)
    _launch(row, workspace, out, _SHIFT[logits.dtype], adjusted is not None)
    return out


def _launch(row: tuple[Any, ...], workspace: Workspace, out: Tensor, shift: int, wide: bool) -> None:
    """Both launches. `row`: the arguments they share."""
    parts, span = split(out.shape[0], row[2])
    num_groups = workspace.groups.shape[1]
    many = parts <= 16  # rows enough to fill the GPU with a small program each
    shared = {"WIDE": wide, "PARTS": MAX_PARTS, "GROUP": GROUP}
    _scan[(parts, out.shape[0])](
        *row, workspace.parts, workspace.groups, num_groups, span, **shared, TILE=_TILE, num_warps=4
    )
    _finish[(out.shape[0],)](
        *row,
        *workspace,
        num_groups,
        parts,
        span,
        out,
        **shared,
        SHIFT=shift,
        PARTS_USED=16 if many else MAX_PARTS,
        GROUPS=triton.next_power_of_2(num_groups),
        CANDIDATES=workspace.values.shape[1],
        TILE=1024 if many else 2048,
        num_warps=4 if many else 8,
    )


def split(rows: int, vocab: int) -> tuple[int, int]:
    """Programs a row, and tokens each of them takes: whole tiles."""
    tiles = -(-vocab // _TILE)
    wanted = max(1, min(tiles, MAX_PARTS, -(-_PROGRAMS // rows)))
    span = -(-tiles // wanted) * _TILE
    return -(-vocab // span), span


# Lines of one table each, whose alignment follows from the number of rows: not worth code of its own.
OPTIONS = ("slots", "temperature", "top_k", "top_p", "min_p", "seeds", "positions")


@triton.jit(do_not_specialize_on_alignment=OPTIONS)
def _scan(
    logits,
    stride,
    vocab,
    wide,
    slots,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    parts,
    groups,
    num_groups,
    span,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    part = tl.program_id(0)
    row = tl.program_id(1)
    narrow = logits + row.to(tl.int64) * stride
    wide, adjusted = wide_row(wide, slots, row, vocab, WIDE)
    heat = tl.load(temperature + row)
    greedy = heat < 1e-5
    scale = LOG2_E / tl.where(greedy, LOG2_E, heat)
    first = part * span
    end = tl.minimum(first + span, vocab)
    here = parts + row * (3 * PARTS) + part
    if _is_plain(greedy, tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row), vocab):
        word = row_word(tl.load(seeds + row).to(tl.int64), tl.load(positions + row).to(tl.int64))
        if greedy:
            bound, chunk, rest = _best_chunk(
                narrow, wide, adjusted, first, end, word, scale, False, WIDE, TILE
            )
        else:
            bound, chunk, rest = _best_chunk(
                narrow, wide, adjusted, first, end, word, scale, True, WIDE, TILE
            )
        tl.store(here, bound)
        tl.store(here + PARTS, chunk.to(tl.float32, bitcast=True))
        tl.store(here + 2 * PARTS, rest)
    else:
        base = groups + row.to(tl.int64) * num_groups
        most, mass = _group_maxima(
            narrow, wide, adjusted, first, end, scale, base, num_groups, WIDE, GROUP, TILE
        )
        tl.store(here, most)
        tl.store(here + PARTS, mass)


@triton.jit
def _is_plain(greedy, k, p, min_p, vocab):
    return greedy | (((k <= 0) | (k >= vocab)) & (p >= 1.0) & (min_p <= 0.0))


@triton.jit
def _best_chunk(
    narrow, wide, adjusted, first, end, word, scale,
    NOISE: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The 8 tokens with the largest bound in [first, end), that bound, and the largest of all other chunks.

    Every lane keeps its own best and second best, so that nothing crosses lanes until the end.
    """
    LANES: tl.constexpr = TILE // 8
    lane = tl.arange(0, LANES)
    within = tl.arange(0, 8)
    best = tl.full([LANES], float("-inf"), tl.float32)
    rest = tl.full([LANES], float("-inf"), tl.float32)
    where = tl.zeros([LANES], tl.int32) + first // 8
    for start in range(first, end, TILE):
        ids = start + lane[:, None] * 8 + within[None, :]
        x = load_logits(narrow, wide, adjusted, ids, ids < end, WIDE)
        if NOISE:
            x = race_bound(x, token_words(word, ids), scale)
        top = tl.max(x, 1)
        rest = tl.maximum(rest, tl.minimum(top, best))
        where = tl.where(top > best, start // 8 + lane, where)  # the first of equals
        best = tl.maximum(top, best)
    bound = tl.max(best, 0)
    chunk = tl.min(tl.where(best == bound, where, 0x7FFFFFFF), 0)
    rest = tl.max(tl.where(where == chunk, rest, tl.maximum(best, rest)), 0)
    return bound, chunk, rest


@triton.jit
def _group_maxima(
    narrow,
    wide,
    adjusted,
    first,
    end,
    scale,
    groups,
    num_groups,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """Store the largest logit of each group in [first, end); their max, and the mass 2^(scale (x - max))."""
    COUNT: tl.constexpr = TILE // GROUP
    line = tl.arange(0, COUNT)
    within = tl.arange(0, GROUP)
    most = tl.full([COUNT], float("-inf"), tl.float32)
    mass = tl.zeros([COUNT], tl.float32)
    for start in range(first, end, TILE):
        ids = start + line[:, None] * GROUP + within[None, :]
        x = load_logits(narrow, wide, adjusted, ids, ids < end, WIDE)
        top = tl.max(x, 1)
        group = start // GROUP + line
        tl.store(groups + group, top, mask=group < num_groups)
        newer = tl.maximum(most, top)
        # Nothing but -inf so far: any finite reference gives a mass of 0.
        base = tl.where(newer == float("-inf"), 0.0, newer) * scale
        mass = mass * tl.exp2(most * scale - base) + tl.sum(tl.exp2(x * scale - base[:, None]), 1)
        most = newer
    top = tl.max(most, 0)
    base = tl.where(top == float("-inf"), 0.0, top) * scale
    return top, tl.sum(mass * tl.exp2(most * scale - base), 0)


@triton.jit(do_not_specialize=["num_parts"], do_not_specialize_on_alignment=OPTIONS)
def _finish(
    logits,
    stride,
    vocab,
    wide,
    slots,
    temperature,
    top_k,
    top_p,
    min_p,
    seeds,
    positions,
    parts,
    groups,
    found,
    values,
    ids,
    bounds,
    num_groups,
    num_parts,
    span,
    out,
    SHIFT: tl.constexpr,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_USED: tl.constexpr,
    GROUPS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0)
    line = row.to(tl.int64)
    narrow = logits + line * stride
    wide, adjusted = wide_row(wide, slots, row, vocab, WIDE)
    heat = tl.load(temperature + row)
    greedy = heat < 1e-5
    scale = LOG2_E / tl.where(greedy, LOG2_E, heat)
    k = tl.load(top_k + row).to(tl.int32)
    p = tl.load(top_p + row)
    least = tl.load(min_p + row)
    word = row_word(tl.load(seeds + row).to(tl.int64), tl.load(positions + row).to(tl.int64))
    parts += row * (3 * PARTS)
    bounds += row * 3
    if _is_plain(greedy, k, p, least, vocab):
        token = _finish_plain(
            narrow, wide, adjusted, vocab, word, scale, greedy, parts, num_parts, span,
            WIDE, PARTS, PARTS_USED, TILE,
        )  # fmt: skip
        tl.store(bounds, float("-inf"))
        tl.store(bounds + 1, vocab.to(tl.float32, bitcast=True))
        tl.store(bounds + 2, float("-inf"))
    else:
        token = draw_cut(
            narrow, wide, adjusted, vocab, word, scale, k, p, least,
            parts, num_parts, groups + line * num_groups, found + line * num_groups, num_groups,
            values + line * CANDIDATES, ids + line * CANDIDATES, bounds, tl.where(adjusted, 0, SHIFT),
            WIDE, PARTS, PARTS_USED, GROUPS, CANDIDATES, GROUP, TILE,
        )  # fmt: skip
    # A row of NaN has no winner, and what is drawn is looked up in tables.
    tl.store(out + row, tl.minimum(token, vocab - 1).to(tl.int64))


@triton.jit
def _finish_plain(
    narrow,
    wide,
    adjusted,
    vocab,
    word,
    scale,
    greedy,
    parts,
    num_parts,
    span,
    WIDE: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_USED: tl.constexpr,
    TILE: tl.constexpr,
):
    part = tl.arange(0, PARTS_USED)
    used = part < num_parts
    chunk = tl.load(parts + PARTS + part, mask=used, other=0.0).to(tl.int32, bitcast=True)
    rest = tl.load(parts + 2 * PARTS + part, mask=used, other=float("-inf"))
    ids = chunk[:, None] * 8 + tl.arange(0, 8)[None, :]
    best, token = _race(narrow, wide, adjusted, ids, used[:, None] & (ids < vocab), word, scale, greedy, WIDE)
    # The slack is for the bound's own rounding. Greedy chunks are exact, the first of equals kept.
    missed = (rest + BOUND_OFFSET + 1e-4 + 1e-6 * tl.abs(best) > best) & (rest > float("-inf"))
    if (greedy == 0) & (tl.max(missed.to(tl.int32), 0) > 0):
        for again in range(num_parts):
            if tl.max((missed & (part == again)).to(tl.int32), 0) > 0:
                first = again * span
                for start in range(first, tl.minimum(first + span, vocab), TILE):
                    ids_here = start + tl.arange(0, TILE)
                    value, one = _race(
                        narrow, wide, adjusted, ids_here[:, None], (ids_here < vocab)[:, None],
                        word, scale, greedy, WIDE,
                    )  # fmt: skip
                    token = tl.where(value > best, one, token)
                    best = tl.maximum(best, value)
    return token


@triton.jit
def _race(narrow, wide, adjusted, ids, mask, word, scale, greedy, WIDE: tl.constexpr):
    """The best value among tokens [n, 8 or 1] and the first token that has it."""
    x = load_logits(narrow, wide, adjusted, ids, mask, WIDE)
    value = tl.where(greedy, x, race_value(x, token_words(word, ids), scale))
    value = tl.where(mask, value, float("-inf"))
    best = tl.max(tl.max(value, 1), 0)
    token = tl.min(tl.min(tl.where((value == best) & mask, ids, 0x7FFFFFFF), 1), 0)
    return best, token
