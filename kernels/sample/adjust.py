"""Float32 logits for the rows that change theirs: allowed ids, stops held back, bias, penalties. Triton.

A row that asks has slots in tables: one for its adjusted logits, one for what it has counted, one for its
offsets. Rows without a slot cost nothing, and the logits themselves stay as they are, for raw logprobs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from workbench.kernels.sample.noise import LOG2_E, load_logits, wide_row
from workbench.kernels.sample.reference import IN_PROMPT, Adjusted, Adjustments, Options

_TILE = 2048
_PROGRAMS = 132 * 16
_COUNT_BLOCK = 128


def adjust(logits: Tensor, positions: Tensor, adjustments: Adjustments, values: Tensor) -> Adjusted:
    """Write the adjusted logits of the rows that have a slot: float32, and on them everything in the order
    allowed ids and bias (offsets), stops held back, repetition, then frequency and presence penalties.

    Args:
        logits: [m, vocab] bfloat16, float16 or float32.
        positions: [m] int32 or int64; place in its request of the token that is drawn.
        adjustments: what the rows ask.
        values: [slots, vocab] float32; the lines of the rows' slots are written.
    """
    rows, vocab = logits.shape
    span = -(-vocab // (_TILE * max(1, _PROGRAMS // rows))) * _TILE
    _adjust[(-(-vocab // span), rows)](
        logits,
        logits.stride(0),
        vocab,
        positions,
        *adjustments,
        adjustments.stops.shape[1],
        values,
        span,
        IN_PROMPT=IN_PROMPT,
        TILE=_TILE,
        num_warps=4,
    )
    return Adjusted(values, adjustments.slots)


def count(counts: Tensor, slots: Tensor, ids: Tensor) -> None:
    """counts[slots, ids] += 1, in place: tokens drawn. [m] int32, [m] int64; slots under 0 are skipped."""
    rows = slots.shape[0]
    _count[(-(-rows // _COUNT_BLOCK),)](
        counts, counts.shape[1], slots, ids, rows, BLOCK=_COUNT_BLOCK, num_warps=4
    )


def start_counts(
    counts: Tensor, slots: Tensor, tokens: Tensor, rows: Tensor, prompts: Tensor, lengths: Tensor
) -> None:
    """Count afresh, in place, the tokens of requests that enter.

    Args:
        counts: [slots, vocab] int32.
        slots, rows: [n] int32; line of `counts` and of `tokens`.
        tokens: [max_rows, max_length] int32.
        prompts, lengths: [n] int32; prompt tokens, and all tokens so far.
    """
    counts.index_fill_(0, slots.long(), 0)
    grid = (slots.shape[0], -(-tokens.shape[1] // _COUNT_BLOCK))
    _start_counts[grid](
        counts,
        counts.shape[1],
        slots,
        tokens,
        tokens.stride(0),
        rows,
        prompts,
        lengths,
        IN_PROMPT=IN_PROMPT,
        BLOCK=_COUNT_BLOCK,
        num_warps=4,
    )


def shape_rows(
    logits: Tensor, options: Options, lines: Tensor, bounds: Tensor, *, adjusted: Adjusted | None = None
) -> Tensor:
    """Processed logits of some rows, after `sample` has found their bounds.

    Args:
        logits, options, adjusted: as given to sample.
        lines: [n] int32 or int64; rows asked for.
        bounds: of the workspace that sample was given.

    Returns:
        [n, vocab] float32: the reference's shape_logits of these rows.
    """
    count, vocab = lines.shape[0], logits.shape[1]
    out = torch.empty((count, vocab), dtype=torch.float32, device=logits.device)
    wide, slots = (bounds, lines) if adjusted is None else adjusted
    _shape_rows[(count, -(-vocab // _TILE))](
        logits,
        logits.stride(0),
        vocab,
        wide,
        slots,
        options.temperature,
        lines,
        bounds,
        out,
        WIDE=adjusted is not None,
        TILE=_TILE,
        num_warps=4,
    )
    return out


# Columns of the rows that ask, cut from one table: their alignment follows from the number of rows.
_COLUMNS = (
    "positions", "slots", "count_slots", "offset_slots", "repetition", "frequency", "presence", "stops",
    "stops_until",
)  # fmt: skip


@triton.jit(do_not_specialize=["num_stops"], do_not_specialize_on_alignment=_COLUMNS)
def _adjust(
    logits,
    stride,
    vocab,
    positions,
    slots,
    count_slots,
    offset_slots,
    counts,
    offsets,
    repetition,
    frequency,
    presence,
    stops,
    stops_until,
    num_stops,
    values,
    span,
    IN_PROMPT: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(1)
    slot = tl.load(slots + row).to(tl.int64)
    if slot >= 0:
        count_slot = tl.load(count_slots + row).to(tl.int64)
        offset_slot = tl.load(offset_slots + row).to(tl.int64)
        repeat = tl.load(repetition + row)
        often = tl.load(frequency + row)
        present = tl.load(presence + row)
        count_end = tl.where(count_slot >= 0, vocab, 0)
        offset_end = tl.where(offset_slot >= 0, vocab, 0)
        early = tl.load(positions + row) < tl.load(stops_until + row)
        held_back = tl.where(early, num_stops, 0)
        first = tl.program_id(0) * span
        for start in range(first, tl.minimum(first + span, vocab), TILE):
            ids = start + tl.arange(0, TILE)
            inside = ids < vocab
            x = tl.load(logits + row.to(tl.int64) * stride + ids, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(offsets + offset_slot * vocab + ids, mask=ids < offset_end, other=0.0)
            for i in range(held_back):
                x = tl.where(ids == tl.load(stops + row * num_stops + i), float("-inf"), x)
            seen = tl.load(counts + count_slot * vocab + ids, mask=ids < count_end, other=0)
            x = tl.where(seen != 0, tl.where(x > 0, x / repeat, x * repeat), x)
            times = (seen & (IN_PROMPT - 1)).to(tl.float32)
            x = tl.where(times > 0, x - (often * times + present), x)
            tl.store(values + slot * vocab + ids, x, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _count(counts, vocab, slots, ids, rows, BLOCK: tl.constexpr):
    line = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + line, mask=line < rows, other=-1).to(tl.int64)
    token = tl.load(ids + line, mask=slot >= 0, other=0)
    tl.atomic_add(counts + slot * vocab + token, 1, mask=slot >= 0)


@triton.jit(do_not_specialize_on_alignment=["slots", "rows", "prompts", "lengths"])
def _start_counts(
    counts,
    vocab,
    slots,
    tokens,
    stride,
    rows,
    prompts,
    lengths,
    IN_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = place < tl.load(lengths + line)
    token = tl.load(tokens + tl.load(rows + line).to(tl.int64) * stride + place, mask=known, other=0)
    spot = counts + tl.load(slots + line).to(tl.int64) * vocab + token
    in_prompt = place < tl.load(prompts + line)
    tl.atomic_or(spot, IN_PROMPT, mask=known & in_prompt)
    tl.atomic_add(spot, 1, mask=known & (in_prompt == 0))


@triton.jit(do_not_specialize_on_alignment=["slots", "temperature", "lines"])
def _shape_rows(
    logits,
    stride,
    vocab,
    wide,
    slots,
    temperature,
    lines,
    bounds,
    out,
    WIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    line = tl.program_id(0)
    row = tl.load(lines + line).to(tl.int64)
    ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = ids < vocab
    wide, adjusted = wide_row(wide, slots, row, vocab, WIDE)
    x = load_logits(logits + row * stride, wide, adjusted, ids, inside, WIDE)
    heat = tl.load(temperature + row)
    greedy = heat < 1e-5
    scale = LOG2_E / tl.where(greedy, LOG2_E, heat)
    boundary = tl.load(bounds + row * 3)
    last = tl.load(bounds + row * 3 + 1).to(tl.int32, bitcast=True)
    floor = tl.load(bounds + row * 3 + 2)
    kept = ((x > boundary) | ((x == boundary) & (ids <= last))) & (x * scale >= floor)
    shaped = tl.where(kept, x / tl.where(greedy, 1.0, heat), float("-inf"))
    tl.store(out + line.to(tl.int64) * vocab + ids, shaped, mask=inside)
