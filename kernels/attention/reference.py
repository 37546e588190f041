"""Ragged attention over a paged KV cache, in torch: what a CPU runs, and what faster kernels are held to.

Requests of a step are attended in buckets of equal query count and similar context, so that one batched
product serves many. Knows nothing of requests or schedules: only of blocks, counts and lengths.

The cache of one layer is [2, kv_heads, num_blocks, block_size, head_dim]: keys, then values; a block's part
for one head is contiguous, and one gather brings a bucket's keys and values head by head, as batched
products want them. (64 requests of 64-300 tokens, 2 heads of 64, 2 cores: 3.3 ms with token-major blocks
and scaled_dot_product_attention, 1.9 ms so.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GEMV_QUERIES = 4  # up to so many queries a request, batched products beat the fused kernel on a CPU


class Bucket(NamedTuple):
    """`requests` requests attended together, with `count` queries each, side by side in the batch."""

    begin: int  # first row of the batch
    requests: int
    count: int
    blocks: Tensor  # [requests, b] int64; block tables, cut to the longest context, padded with block 0
    bias: Tensor | None  # [requests, count, b * block_size] float32, 0 or -inf; None: causal, no context

    @property
    def end(self) -> int:
        return self.begin + self.requests * self.count


def write_kv(cache: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [T, kv_heads, head_dim] at `slots` [T] int64 (block * block_size + offset)."""
    flat = cache.view(2, cache.shape[1], -1, cache.shape[4])
    flat[0].index_copy_(1, slots, keys.transpose(0, 1))
    flat[1].index_copy_(1, slots, values.transpose(0, 1))


def make_bucket(
    begin: int, starts: Sequence[int], count: int, blocks: Tensor, block_size: int, window: int | None
) -> Bucket:
    """A bucket of requests whose queries stand at positions start .. start + count - 1.

    A query at position p sees positions max(0, p - window + 1) .. p.
    """
    first = torch.as_tensor(starts, device=blocks.device)
    if count > GEMV_QUERIES and window is None and not any(starts):
        return Bucket(begin, len(starts), count, blocks, None)
    queries = first[:, None, None] + torch.arange(count, device=blocks.device)[None, :, None]
    keys = torch.arange(blocks.shape[1] * block_size, device=blocks.device)[None, None, :]
    seen = keys <= queries
    if window is not None:
        seen &= keys > queries - window
    bias = torch.zeros(seen.shape, device=blocks.device).masked_fill_(~seen, float("-inf"))
    return Bucket(begin, len(starts), count, blocks, bias)


def attend(query: Tensor, cache: Tensor, buckets: Sequence[Bucket], scale: float, out: Tensor) -> Tensor:
    """Attention of `query` [T, heads, head_dim] over the cache, written to `out` [T, heads * head_dim].

    Every key a query may see has been written before, those of this step too. Softmax in float32.
    """
    for bucket in buckets:
        part = query[bucket.begin : bucket.end].view(bucket.requests, bucket.count, *query.shape[1:])
        keys, values = gather(cache, bucket.blocks)
        few = bucket.count <= GEMV_QUERIES and bucket.bias is not None
        result = (_by_products if few else _by_fused_kernel)(part, keys, values, bucket.bias, scale)
        out[bucket.begin : bucket.end] = result.reshape(-1, out.shape[1])
    return out


def gather(cache: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of the blocks [r, b], each [kv_heads, r, b * block_size, head_dim]."""
    _, kv_heads, num_blocks, block_size, head_dim = cache.shape
    planes = torch.arange(2 * kv_heads, device=cache.device) * num_blocks
    index = (planes[:, None] + blocks.reshape(1, -1)).view(-1)
    both = cache.view(-1, block_size * head_dim).index_select(0, index)
    keys, values = both.view(2, kv_heads, blocks.shape[0], -1, head_dim)
    return keys, values


def _by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Few queries: products batched over request and KV head, a head's group of queries as the rows."""
    requests, count, heads, dim = query.shape
    kv_heads, _, length, _ = keys.shape
    group = heads // kv_heads
    # [kv_heads * r, group * count, dim]
    rows = query.view(requests, count, kv_heads, group, dim).permute(2, 0, 3, 1, 4)
    rows = rows.reshape(kv_heads * requests, group * count, dim)
    assert bias is not None, "few queries come with a bias"
    spread = bias[None, :, None].expand(kv_heads, requests, group, count, length)
    spread = spread.reshape(kv_heads * requests, group * count, length).to(query.dtype)
    scores = torch.baddbmm(spread, rows, keys.view(-1, length, dim).transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    result = torch.bmm(weights, values.view(-1, length, dim))
    result = result.view(kv_heads, requests, group, count, dim)
    return result.permute(1, 3, 0, 2, 4)  # [r, count, kv_heads, group, dim]


def _by_fused_kernel(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Many queries: torch's own attention, which shares a head's keys within its group."""
    if bias is None:  # a whole prompt from position 0; the padding of its last block lies behind it
        length = query.shape[1]
        keys, values = keys[:, :, :length], values[:, :, :length]
    mask = None if bias is None else bias[:, None].to(query.dtype)
    result = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=mask,
        is_causal=bias is None,
        scale=scale,
        enable_gqa=True,
    )
    return result.transpose(1, 2)
