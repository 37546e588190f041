"""Ragged attention over a paged KV cache, in torch: what a CPU runs, and what faster kernels are held to.

Requests of a step are attended in buckets of equal query count and similar context, so that one batched
product serves many. Knows nothing of requests or schedules: only of blocks, counts and lengths.

The cache of one layer is [2, kv_heads, num_blocks, block_size, head_dim]: keys, then values; a block's part
for one head is contiguous, and one gather brings a bucket's keys and values head by head, as batched
products want them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GEMV_QUERIES = 4  # up to so many queries a request, batched products beat the fused kernel on a CPU


class Layout(NamedTuple):
    """What all layers that share a block table have in common."""

    heads: int
    kv_heads: int
    num_blocks: int  # of the cache, the null block included
    block_size: int
    window: int | None  # a query at position p sees max(0, p - window + 1) .. p; None: 0 .. p


class Bucket(NamedTuple):
    """`requests` requests attended together, with `count` queries each, side by side in the batch."""

    begin: int  # first row of the batch
    requests: int
    count: int
    gather: Tensor  # [2 * kv_heads * requests * b] int64; the block parts, keys first, head by head
    bias: Tensor | None  # float32, 0 or -inf; None: a whole prompt, causal, with nothing before it
    # few queries: [kv_heads * requests, group * count, b * block_size]; many: [requests, 1, count, same]

    @property
    def end(self) -> int:
        return self.begin + self.requests * self.count


def make_places(slots: Tensor, layout: Layout) -> Tensor:
    """Where each token's keys and values go, head by head: [T * 2 * kv_heads] int64, rows of head_dim.

    `slots` [T] int64: block * block_size + offset.
    """
    planes = torch.arange(2 * layout.kv_heads, device=slots.device) * (layout.num_blocks * layout.block_size)
    return (slots[:, None] + planes).view(-1)


def write_kv(cache: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
    """Store keys and values [T, kv_heads, head_dim] at the places of `make_places`."""
    both = torch.cat((keys, values), 1).to(cache.dtype)
    cache.view(-1, cache.shape[4]).index_copy_(0, places, both.view(-1, cache.shape[4]))


def make_bucket(begin: int, starts: Sequence[int], count: int, blocks: Tensor, layout: Layout) -> Bucket:
    """A bucket of requests whose queries stand at positions start .. start + count - 1.

    `blocks` [requests, b] int64: block tables, cut to the longest context, padded with the null block. What
    is made here serves every layer of the step.
    """
    device, requests = blocks.device, len(starts)
    planes = torch.arange(2 * layout.kv_heads, device=device) * layout.num_blocks
    gather = (planes[:, None] + blocks.reshape(1, -1)).view(-1)
    few = count <= GEMV_QUERIES
    if not few and layout.window is None and not any(starts):
        return Bucket(begin, requests, count, gather, None)
    first = torch.as_tensor(starts, device=device)
    queries = first[:, None, None] + torch.arange(count, device=device)[None, :, None]
    keys = torch.arange(blocks.shape[1] * layout.block_size, device=device)[None, None, :]
    seen = keys <= queries
    if layout.window is not None:
        seen &= keys > queries - layout.window
    bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[:, None]
    if few:
        group = layout.heads // layout.kv_heads
        spread = bias.expand(layout.kv_heads, requests, group, count, -1)
        bias = spread.reshape(layout.kv_heads * requests, group * count, -1)
    return Bucket(begin, requests, count, gather, bias)


def workspace(buckets: Sequence[Bucket], like: Tensor) -> Tensor:
    """Memory for the keys and values of any one bucket, reused by every layer: new memory means page faults.

    (64 requests of 64-300 tokens: gathering into fresh memory took 5 ms a layer, into this 1.)
    """
    rows = max((bucket.gather.numel() for bucket in buckets), default=0)
    return torch.empty(rows, like.shape[3] * like.shape[4], dtype=like.dtype, device=like.device)


def attend(
    query: Tensor, cache: Tensor, buckets: Sequence[Bucket], scale: float, space: Tensor, out: Tensor
) -> Tensor:
    """Attention of `query` [T, heads, head_dim] over the cache, written to `out` [T, heads * head_dim].

    Every key a query may see has been written before, those of this step too. Softmax in float32.
    """
    for bucket in buckets:
        part = query[bucket.begin : bucket.end].view(bucket.requests, bucket.count, *query.shape[1:])
        keys, values = gather(cache, bucket, space)
        few = bucket.count <= GEMV_QUERIES
        result = (_by_products if few else _by_fused_kernel)(part, keys, values, bucket.bias, scale)
        out[bucket.begin : bucket.end].view(result.shape).copy_(result)
    return out


def gather(cache: Tensor, bucket: Bucket, space: Tensor) -> tuple[Tensor, Tensor]:
    """A bucket's keys and values, each [kv_heads, requests, b * block_size, head_dim], in `space`."""
    _, kv_heads, _, block_size, head_dim = cache.shape
    both = space[: bucket.gather.numel()]
    torch.index_select(cache.view(-1, block_size * head_dim), 0, bucket.gather, out=both)
    keys, values = both.view(2, kv_heads, bucket.requests, -1, head_dim)
    return keys, values


def _by_products(query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Few queries: products batched over KV head and request, a head's group of queries as the rows."""
    requests, count, heads, dim = query.shape
    kv_heads, _, length, _ = keys.shape
    group = heads // kv_heads
    rows = query.view(requests, count, kv_heads, group, dim).permute(2, 0, 3, 1, 4)
    rows = rows.reshape(kv_heads * requests, group * count, dim)
    assert bias is not None, "few queries come with a bias"
    bias = bias.to(query.dtype)
    scores = torch.baddbmm(bias, rows, keys.view(-1, length, dim).transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    result = torch.bmm(weights, values.view(-1, length, dim)).view(kv_heads, requests, group, count, dim)
    return result.permute(1, 3, 0, 2, 4)  # [r, count, kv_heads, group, dim]


def _by_fused_kernel(
    query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Many queries: torch's own attention, which shares a head's keys within its group."""
    if bias is None:  # the padding of the last block lies behind every query
        length = query.shape[1]
        keys, values = keys[:, :, :length], values[:, :, :length]
    result = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=None if bias is None else bias.to(query.dtype),
        is_causal=bias is None,
        scale=scale,
        enable_gqa=True,
    )
    return result.transpose(1, 2)  # [r, count, heads, dim]
