"""The least work in steps of these shapes, operation by operation: bytes to move and flops to compute.

A step's operation takes its bytes over the copy bandwidth or its flops over the matrix rate, whichever is
longer; a bound is the sum over operations and steps, and nothing else: no launch, no norm, no sampling. Knows
shapes; no engine and no clock.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workbench.models.spec import ModelSpec

Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Work(NamedTuple):
    """What an operation has to move and to multiply in each step."""

    bytes: Floats  # [steps]
    flops: Floats  # [steps]

    def seconds(self, bytes_per_s: float, flops_per_s: float) -> float:
        """The least time, when moving and multiplying go on side by side."""
        return float(np.maximum(self.bytes / bytes_per_s, self.flops / flops_per_s).sum())


class Chunks(NamedTuple):
    """Who computed what: a line for each request of each step."""

    step: Longs  # [n]; lines of one step share a number
    start: Longs  # [n]; position of the first token
    scheduled: Longs  # [n]; tokens
    samples: npt.NDArray[np.bool_]  # [n]; the last position yields a token

    def a_step(self, values: npt.NDArray[np.generic]) -> Floats:
        """Sums over the lines of each step; [steps], in the order of their numbers."""
        _, place = np.unique(self.step, return_inverse=True)
        return np.bincount(place, weights=values.astype(np.float64)).astype(np.float64)


def layers(spec: ModelSpec, chunks: Chunks, item_bytes: int) -> Work:
    """Products of the layers: their weights read once a step."""
    heads = 2 * spec.num_heads + 2 * spec.num_kv_heads  # rows of q, k, v and columns of the output projection
    numbers = spec.num_layers * spec.hidden_size * (spec.head_dim * heads + 3 * spec.intermediate_size)
    tokens = chunks.a_step(chunks.scheduled)
    return Work(np.full(len(tokens), float(numbers * item_bytes)), 2.0 * numbers * tokens)


def head(spec: ModelSpec, chunks: Chunks, item_bytes: int) -> Work:
    """The output projection: read once in a step that samples."""
    numbers = spec.vocab_size * spec.hidden_size
    sampled = chunks.a_step(chunks.samples)
    return Work(numbers * item_bytes * (sampled > 0).astype(np.float64), 2.0 * numbers * sampled)


def attention(spec: ModelSpec, chunks: Chunks, item_bytes: int, shared: int = 0) -> Work:
    """Attention: every visible key and value read once a step, new ones written once.

    Args:
        item_bytes: of a number in the KV cache.
        shared: tokens that all requests begin with; read once a step, however many see them.
    """
    entry = 2 * spec.num_kv_heads * spec.head_dim * item_bytes  # a token of a layer: its key and value
    written = chunks.a_step(chunks.scheduled)
    total = Work(np.zeros_like(written), np.zeros_like(written))
    for window, count in Counter(spec.windows).items():
        tokens = _tokens_read(chunks, window, shared) + written
        flops = 4.0 * spec.num_heads * spec.head_dim * chunks.a_step(_pairs(chunks, window))
        total = Work(total.bytes + count * entry * tokens, total.flops + count * flops)
    return total


def _tokens_read(chunks: Chunks, window: int | None, shared: int) -> Floats:
    ends = chunks.start + chunks.scheduled
    if window is not None:  # counted request by request: a window is short beside a prefix worth sharing
        return chunks.a_step(np.minimum(ends, window + chunks.scheduled - 1))
    repeated = np.maximum(chunks.a_step(ends > shared) - 1, 0)
    return chunks.a_step(ends) - repeated * shared


def _pairs(chunks: Chunks, window: int | None) -> Longs:
    """Query-key pairs of each line: the query at position p sees p + 1 keys, or the window."""
    start, count = chunks.start, chunks.scheduled
    # [0, growing)      sees one key more than the query before it
    # [growing, count)  sees the window
    growing = count if window is None else np.clip(window - start, 0, count)
    return growing * start + growing * (growing + 1) // 2 + (count - growing) * (window or 0)
