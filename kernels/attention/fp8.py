"""Eight-bit floating-point keys and values, in torch: what a CPU runs and what the kernels are held to.

A number x is stored as x / scale, rounded to the nearest (ties to even) and saturated at the largest finite
one, and read as stored * scale. Scales that are found here are powers of two, so that nothing but the one
rounding is lost: an FP8 number times a power of two is a number of every wider format, and it does not matter
where the scale is multiplied in. The formats: Micikevicius et al. 2022, arXiv:2209.05433.

Scales of a layer's cache [2, kv_heads, num_blocks, block_size, head_dim] are either
    [2] float32                                     of all keys and of all values
    [2, kv_heads, num_blocks, block_size] uint8     of every token's head: e stands for 2^(e - 127)
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = (torch.float8_e4m3fn, torch.float8_e5m2)
# The largest numbers are 1.75 * 2^8 and 1.75 * 2^15.
EXPONENT_OF_LARGEST = {torch.float8_e4m3fn: 8, torch.float8_e5m2: 15}
# Adds one to the exponent of a float32 whose mantissa is above 1.75, when added to its bits.
ABOVE_LARGEST = 0x1FFFFF
BIAS = 127  # of a float32's exponent
MOST = 119  # with a larger exponent than this the largest FP8 numbers of e4m3 would be no float32


def is_fp8(dtype: torch.dtype) -> bool:
    return dtype in FORMATS


def largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max


def exponents(largest_of: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponents of the least powers of two that bring numbers up to `largest_of` into the format's range.

    Args:
        largest_of: float32, >= 0; of 0 or less than any exponent can serve, the least is told.
        dtype: the format.

    Returns:
        int32, the same shape; the scale is 2^exponent, at most 2^MOST.
    """
    bits = largest_of.float().contiguous().view(torch.int32)
    found = ((bits + ABOVE_LARGEST) >> 23) - BIAS - EXPONENT_OF_LARGEST[dtype]
    return found.clamp(1 - BIAS, MOST)


def power(exponent: Tensor) -> Tensor:
    """2^exponent as float32, exactly; exponents from -126 to 127."""
    return ((exponent.to(torch.int32) + BIAS) << 23).view(torch.float32)


def quantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in an FP8 format; infinities saturate too, NaN stays NaN. `scale` float32, to be broadcast."""
    wide = x if x.dtype == torch.float64 else x.float()
    bound = largest(dtype)
    return (wide / scale).clamp_(-bound, bound).to(dtype)


def head_exponents(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale for each row of `x` [..., head_dim]: [...] uint8, as it is stored. NaN has no say in it."""
    magnitude = torch.where(x.isnan(), 0.0, x.abs().float()).amax(-1)
    return (exponents(magnitude, dtype) + BIAS).to(torch.uint8)


def head_scales(stored: Tensor) -> Tensor:
    """[...] uint8 -> [..., 1] float32."""
    return power(stored.to(torch.int32) - BIAS)[..., None]
