"""A row's logits, the random words of a draw and the race they decide. Triton device functions.

A token wins by the largest  logit / T - log e,  e ~ Exp(1) from a hash of (seed, position, token): the
exponential race of the reference, in logarithms to base 2 here.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
HAS_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
BOUND_OFFSET = tl.constexpr(32.0)  # the bound of the race leaves it out: u = word / 2^32


@triton.jit
def mix(x):
    """The reference's bijection of 32-bit words (uint32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_word(seed, position):
    """A request's word (uint32) at a position; seed and position are int64."""
    high = (seed >> 32).to(tl.uint32)
    return mix(mix(seed.to(tl.uint32) ^ mix(high ^ 0x9E3779B9)) + position.to(tl.uint32))


@triton.jit
def token_words(word, ids):
    """A word (uint32) for each token id."""
    return mix(word ^ (ids.to(tl.uint32) * 0x9E3779B1))


@triton.jit
def race_bound(x, words, scale):
    """At least the race's value minus BOUND_OFFSET: -log2(u) >= -log2(e), for e = -log(1 - u) >= u.

    One conversion and one instruction for the logarithm; for the small u that win it is the value itself.
    """
    return x * scale - _log2_below(words.to(tl.float32))


@triton.jit
def _log2_below(x):
    """log2 of a word in float32, or a little less; the compiler's own takes 25 instructions."""
    if HAS_PTX:
        y = tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        # A float's bits read as an integer are its log2 from below, linear within an octave.
        y = x.to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 8388608.0) - 127.0
    return y


@triton.jit
def race_value(x, words, scale):
    """The race's value: x * scale - log2(e)."""
    u = tl.minimum((words.to(tl.float32) + 0.5) * (1.0 / 4294967296.0), 1.0 - 1.0 / 16777216.0)
    # -log(1 - u) = 2 atanh(u / (2 - u)): a logarithm near 1 would keep no digit of the small u that win.
    s = u / (2.0 - u)
    t = s * s
    near = 2.0 * s * (1.0 + t * (1.0 / 3 + t * (1.0 / 5 + t * (1.0 / 7 + t * (1.0 / 9)))))
    e = tl.where(u < 0.25, near, -tl.log(1.0 - u))
    return x * scale - tl.log2(e)


@triton.jit
def to_key(x, shift):
    """An int32 in the order of the floats, less the `shift` low bits that the logits' dtype leaves empty."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 and 0 are one value
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> shift


@triton.jit
def wide_row(wide, slots, row, vocab, WIDE: tl.constexpr):
    """Pointer to a row's adjusted logits, and whether it has any."""
    if WIDE:
        slot = tl.load(slots + row).to(tl.int64)
        adjusted = slot >= 0
        wide += tl.maximum(slot, 0) * vocab
    else:
        adjusted = vocab < 0
    return wide, adjusted


@triton.jit
def load_logits(narrow, wide, adjusted, ids, mask, WIDE: tl.constexpr):
    """A row's logits in float32: the adjusted ones where it has them. Outside the mask -inf."""
    if WIDE:
        if adjusted:
            x = tl.load(wide + ids, mask=mask, other=float("-inf"))
        else:
            x = tl.load(narrow + ids, mask=mask, other=float("-inf")).to(tl.float32)
    else:
        x = tl.load(narrow + ids, mask=mask, other=float("-inf")).to(tl.float32)
    return x
