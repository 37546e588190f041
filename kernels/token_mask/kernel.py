"""Minus infinity for the tokens that a mask of bits does not allow, in some lines of a table. Triton."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048


def mask_tokens(values: Tensor, slots: Tensor, bits: Tensor) -> Tensor:
    """Mask lines of `values` in place, and return it.

    Args:
        values: [lines, vocab] float32.
        slots: [k] int32 or int64; lines that are masked, each once.
        bits: [k, ceil(vocab / 32)] int32; bit i % 32 of word i // 32 is set: token i is allowed.
    """
    vocab = values.shape[1]
    grid = (-(-vocab // _TILE), slots.shape[0])
    _mask_tokens[grid](values, values.stride(0), vocab, slots, bits, bits.stride(0), TILE=_TILE, num_warps=4)
    return values


# One request enters, another leaves: the number of masks and where they lie change from step to step.
@triton.jit(do_not_specialize_on_alignment=["slots", "bits"])
def _mask_tokens(values, stride, vocab, slots, bits, words, TILE: tl.constexpr):
    line = tl.program_id(1)
    slot = tl.load(slots + line).to(tl.int64)
    ids = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = ids < vocab
    word = tl.load(bits + line.to(tl.int64) * words + ids // 32, mask=inside, other=-1)
    forbidden = ((word >> (ids % 32)) & 1) == 0
    tl.store(values + slot * stride + ids, float("-inf"), mask=inside & forbidden)
