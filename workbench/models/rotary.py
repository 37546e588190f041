"""The table of cosines and sines that turns positions into rotations. Knows no layer and no head.

Two kinds of scaling depend on the length of the sequence in transformers: `dynamic` picks its base and
`longrope` its factors anew in every forward pass, so that keys already in a KV cache were turned by other
angles than the queries that meet them. A paged cache shared by requests needs one table for all of them, so
here the engine's length decides, once: the number of positions the table is built for.

    kind       table of at most the pretraining's positions     longer table
    dynamic    the base as it is                                the base for a sequence of the table's length
    longrope   short_factor                                     long_factor

This equals transformers for every sequence in the first column; in the second for sequences that fill the
table (dynamic) or are longer than the pretraining's (longrope) from their first forward pass on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.models.spec import ModelSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines by position, attention scaling folded in."""

    cos_sin: Tensor  # [max_positions, head_dim] float32, device; head_dim / 2 cosines, then their sines

    def at(self, positions: Tensor) -> Tensor:
        """[T, head_dim] float32; the rows of `positions` ([T] int64), gathered once for all layers."""
        return self.cos_sin.index_select(0, positions)


def build_rotary(spec: ModelSpec, max_positions: int, device: torch.device | str) -> Rotary:
    """The table for positions 0 .. max_positions - 1, in float32 throughout, as in transformers."""
    frequencies = inverse_frequencies(spec.rope, spec.head_dim, max_positions)
    positions = torch.arange(max_positions, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies.to(device))
    table = torch.empty(max_positions, spec.head_dim, device=device)
    cos, sin = table.chunk(2, dim=-1)
    torch.mul(angles.cos(), spec.rope.attention_factor, out=cos)
    torch.mul(angles.sin(), spec.rope.attention_factor, out=sin)
    return Rotary(table)


def inverse_frequencies(rope: RopeSpec, head_dim: int, max_positions: int) -> Tensor:
    """[head_dim / 2] float32, CPU; radians a position, fastest first."""
    if rope.kind == "default":
        return _plain(rope.theta, head_dim)
    if rope.kind == "linear":
        return _plain(rope.theta, head_dim) / rope.factor
    if rope.kind == "dynamic":
        return _plain(_dynamic_theta(rope, head_dim, max_positions), head_dim)
    if rope.kind == "longrope":
        return _longrope(rope, head_dim, max_positions)
    if rope.kind == "yarn":
        return _yarn(rope, head_dim)
    return _llama3(rope, head_dim)


def _periods(theta: float, head_dim: int) -> Tensor:
    return theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _plain(theta: float, head_dim: int) -> Tensor:
    return 1.0 / _periods(theta, head_dim)


def _dynamic_theta(rope: RopeSpec, head_dim: int, max_positions: int) -> float:
    """NTK-aware scaling of the base: 1 up to the pretraining's positions, growing with the table beyond."""
    length = max(max_positions, rope.original_max_position_embeddings)
    stretch = rope.factor * length / rope.original_max_position_embeddings - (rope.factor - 1.0)
    return float(rope.theta * stretch ** (head_dim / (head_dim - 2)))


def _longrope(rope: RopeSpec, head_dim: int, max_positions: int) -> Tensor:
    """LongRoPE (arXiv:2402.13753): one searched divisor a frequency."""
    beyond = max_positions > rope.original_max_position_embeddings
    divisors = torch.tensor(rope.long_factor if beyond else rope.short_factor, dtype=torch.float32)
    return 1.0 / (divisors * _periods(rope.theta, head_dim))


def _yarn(rope: RopeSpec, head_dim: int) -> Tensor:
    """YaRN (arXiv:2309.00071): fast frequencies stay, slow ones are divided, a ramp lies between."""
    periods = _periods(rope.theta, head_dim)
    low = _rotating_dimension(rope, head_dim, rope.beta_fast)
    high = _rotating_dimension(rope, head_dim, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001
    stays = 1.0 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return (1.0 / (rope.factor * periods)) * (1.0 - stays) + (1.0 / periods) * stays


def _rotating_dimension(rope: RopeSpec, head_dim: int, rotations: float) -> float:
    """The pair (not whole) that turns `rotations` times over the pretraining's context."""
    wavelength = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
    return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))


def _llama3(rope: RopeSpec, head_dim: int) -> Tensor:
    """Llama 3.1: as YaRN, with the ramp over context / wavelength."""
    frequencies = _plain(rope.theta, head_dim)
    context = rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    stays = (context / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    stays = stays.clamp(0, 1)
    return frequencies / rope.factor * (1 - stays) + frequencies * stays
