"""Ragged attention over a paged KV cache, in torch: what a CPU runs, and what faster kernels are held to.

Requests of a step are attended in buckets of equal query count and similar context, so that one batched
product serves many; a prefix that all of a bucket share is read once for all. Knows nothing of requests or
schedules: only of blocks, counts and lengths.

The cache of one layer is [2, kv_heads, num_blocks, block_size, head_dim]: keys, then values; a block's part
for one head is contiguous, and one gather brings a bucket's keys and values head by head, as batched
products want them. A cache in FP8 comes with scales (fp8.py); what is read is scaled back, and so is what a
step has just written: attention never sees a number that a later step would read otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from workbench.kernels.attention import fp8

GEMV_QUERIES = 4  # up to so many queries a request, batched products beat the fused kernel on a CPU
FEW_TOKENS = 256  # up to so many, keys are written row by row; beyond, threads share the work


class Layout(NamedTuple):
    """What all layers that share a block table have in common."""

    heads: int
    kv_heads: int
    num_blocks: int  # of the cache, the null block included
    block_size: int
    window: int | None  # a query at position p sees max(0, p - window + 1) .. p; None: 0 .. p


class Bucket(NamedTuple):
    """`requests` requests attended together, with `count` queries each, side by side in the batch.

    The bucket's context is `shared` blocks that all of them have in common, then `width` blocks of each::

        [prefix ... shared * block_size)[own ... (shared + width) * block_size)
    """

    begin: int  # first row of the batch
    requests: int
    count: int
    shared: int  # blocks
    width: int  # blocks
    prefix: (
        Tensor | None
    )  # [2 * kv_heads * shared] int64; block parts, keys first, head by head; None: no prefix
    own: Tensor  # [2 * kv_heads * requests * width] int64; the same of each request
    bias: Tensor | None  # float32, 0 or -inf, over own; None: a whole prompt, causal, with nothing before it
    # few queries: [kv_heads * requests, group * count, width * block_size]; many: [requests, 1, count, same]
    seen: Tensor | None = None  # [requests, width * block_size] bool: by some query; None: no bias

    @property
    def end(self) -> int:
        return self.begin + self.requests * self.count


class Context(NamedTuple):
    """A bucket's keys and values, gathered."""

    keys: Tensor  # [kv_heads, requests, own positions, head_dim]
    values: Tensor
    prefix: Tensor | None  # [2, kv_heads, prefix positions, head_dim]; keys, then values


def make_places(slots: Tensor, layout: Layout) -> Tensor:
    """Where each token's keys and values go, head by head: [T * 2 * kv_heads] int64, rows of head_dim.

    `slots` [T] int64: block * block_size + offset.
    """
    planes = torch.arange(2 * layout.kv_heads, device=slots.device) * (layout.num_blocks * layout.block_size)
    return (slots[:, None] + planes).view(-1)


def write_kv(
    cache: Tensor, places: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None = None
) -> Tensor:
    """Store keys and values [T, kv_heads, head_dim] at the places of `make_places`.

    Returns what was written as it will be read, [T * 2 * kv_heads, head_dim]: in the order of the places.
    """
    lines = torch.cat((keys, values), 1)
    if scales is None:
        lines = stored = lines.to(cache.dtype)
    elif scales.dtype == torch.uint8:
        exponents = fp8.head_exponents(lines, cache.dtype)
        _put(scales.view(-1), places, exponents.view(-1), len(keys))
        lines, stored = _quantised(lines, fp8.head_scales(exponents), cache.dtype)
    else:
        scale = scales.repeat_interleave(keys.shape[1])[:, None]  # a head's, keys first
        lines, stored = _quantised(lines, scale, cache.dtype)
    _put(_bytes(cache).view(-1, cache.shape[4]), places, _bytes(stored).view(-1, cache.shape[4]), len(keys))
    return lines.view(-1, cache.shape[4])


def _quantised(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`x` as it will be read, in its own dtype, and as it is stored."""
    stored = fp8.quantise(x, scale, dtype)
    return (stored.float() * scale).to(x.dtype), stored


def _bytes(x: Tensor) -> Tensor:
    """FP8 numbers as bytes, which every operation that moves them takes."""
    return x.view(torch.uint8) if fp8.is_fp8(x.dtype) else x


def _put(memory: Tensor, places: Tensor, lines: Tensor, tokens: int) -> None:
    # 8,192 tokens of 2 heads of 64, two threads: 9 ms by index_copy_, which keeps to one, 3 by index_put_;
    # 64 tokens: 0.04 ms by index_copy_.
    if tokens <= FEW_TOKENS:
        memory.index_copy_(0, places, lines)
    else:
        memory.index_put_((places,), lines)


def make_bucket(
    begin: int, starts: Sequence[int], count: int, blocks: Tensor, layout: Layout, shared: int = 0
) -> Bucket:
    """A bucket of requests whose queries stand at positions start .. start + count - 1.

    `blocks` [requests, b] int64: block tables, cut to the longest context, padded with the null block. The
    first `shared` of them are the same for all, and behind nobody's first query. What is made here serves
    every layer of the step.
    """
    device, requests = blocks.device, len(starts)
    width = blocks.shape[1] - shared
    prefix = parts(blocks[0, :shared], layout) if shared else None
    own = parts(blocks[:, shared:], layout)
    few = count <= GEMV_QUERIES
    if not few and layout.window is None and not any(starts):
        return Bucket(begin, requests, count, shared, width, prefix, own, None)
    first = torch.as_tensor(starts, device=device)
    queries = first[:, None, None] + torch.arange(count, device=device)[None, :, None]
    keys = torch.arange(shared * layout.block_size, blocks.shape[1] * layout.block_size, device=device)
    seen = keys <= queries
    if layout.window is not None:
        seen &= keys > queries - layout.window
    bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[:, None]
    if few:
        group = layout.heads // layout.kv_heads
        spread = bias.expand(layout.kv_heads, requests, group, count, -1)
        bias = spread.reshape(layout.kv_heads * requests, group * count, -1)
    return Bucket(begin, requests, count, shared, width, prefix, own, bias, seen.any(1))


def parts(blocks: Tensor, layout: Layout) -> Tensor:
    """Where the parts of blocks [...] lie in a cache, keys first, head by head: int64, flat."""
    planes = torch.arange(2 * layout.kv_heads, device=blocks.device) * layout.num_blocks
    return (planes[:, None] + blocks.reshape(1, -1)).view(-1)


def workspace(buckets: Sequence[Bucket], cache: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for the keys and values of any one bucket, reused by every layer: new memory means page faults.

    (64 requests of 64-300 tokens: gathering into fresh memory took 5 ms a layer, into this 1.) `dtype`: of
    queries; keys and values are read in it.
    """
    rows = max((_num_parts(bucket) for bucket in buckets), default=0)
    return torch.empty(rows, cache.shape[3] * cache.shape[4], dtype=dtype, device=cache.device)


def _num_parts(bucket: Bucket) -> int:
    return bucket.own.numel() + (0 if bucket.prefix is None else bucket.prefix.numel())


def attend(
    query: Tensor,
    cache: Tensor,
    buckets: Sequence[Bucket],
    scale: float,
    space: Tensor,
    out: Tensor,
    scales: Tensor | None = None,
) -> Tensor:
    """Attention of `query` [T, heads, head_dim] over the cache, written to `out` [T, heads * head_dim].

    Every key a query may see has been written before, those of this step too. Softmax in float32.
    """
    for bucket in buckets:
        attend_bucket(query, gather(cache, bucket, space, scales), bucket, scale, out)
    return out


def attend_bucket(query: Tensor, context: Context, bucket: Bucket, scale: float, out: Tensor) -> None:
    """One bucket's part of `attend`, its keys and values gathered before."""
    part = query[bucket.begin : bucket.end].view(bucket.requests, bucket.count, *query.shape[1:])
    few = bucket.count <= GEMV_QUERIES
    result = (_by_products if few else _by_fused_kernel)(part, context, bucket.bias, scale)
    out[bucket.begin : bucket.end].view(result.shape).copy_(result)


def gather(cache: Tensor, bucket: Bucket, space: Tensor, scales: Tensor | None = None) -> Context:
    """A bucket's keys and values, in `space`."""
    kv_heads, head_dim, num_own = cache.shape[1], cache.shape[4], bucket.own.numel()
    both = read_parts(cache, scales, bucket.own, space[:num_own])
    both = both.view(2, kv_heads, bucket.requests, -1, head_dim)
    if scales is not None:
        clear_unseen(both, bucket)
    keys, values = both
    if bucket.prefix is None:
        return Context(keys, values, None)
    prefix = read_parts(cache, scales, bucket.prefix, space[num_own : _num_parts(bucket)])
    return Context(keys, values, prefix.view(2, kv_heads, -1, head_dim))


def read_parts(cache: Tensor, scales: Tensor | None, places: Tensor, out: Tensor) -> Tensor:
    """Blocks' parts, scaled back, into `out` [n, block_size * head_dim].

    `places` [n] int64: as `parts` gives them, so that the first half are keys and the other values.
    """
    _, _, _, block_size, head_dim = cache.shape
    if scales is None:
        return torch.index_select(cache.view(-1, block_size * head_dim), 0, places, out=out)
    stored = torch.index_select(_bytes(cache).view(-1, block_size * head_dim), 0, places)
    out.copy_(stored.view(cache.dtype))
    if scales.dtype == torch.uint8:
        of_heads = fp8.head_scales(torch.index_select(scales.view(-1, block_size), 0, places))
        out.view(-1, block_size, head_dim).mul_(of_heads)
    else:
        out.view(2, -1).mul_(scales[:, None])
    return out


def clear_unseen(both: Tensor, bucket: Bucket) -> None:
    """Zeros where no query looks: a weight of 0 times what a foreign slot holds may be NaN.

    `both` [2, kv_heads, requests, positions, head_dim]; as many positions as the bucket's own, or more.
    """
    if bucket.seen is not None:
        own = both[:, :, :, : bucket.seen.shape[1]]
        own.masked_fill_(~bucket.seen[None, None, :, :, None], 0.0)


def _by_products(query: Tensor, context: Context, bias: Tensor | None, scale: float) -> Tensor:
    """Few queries: products batched over KV head and request, a head's group of queries as the rows.

    A prefix is multiplied by the queries of all requests at once.
    """
    requests, count, heads, dim = query.shape
    keys, values, prefix = context
    kv_heads, _, length, _ = keys.shape
    batch, group = kv_heads * requests, heads // kv_heads
    rows = query.view(requests, count, kv_heads, group, dim).permute(2, 0, 3, 1, 4)
    rows = rows.reshape(batch, group * count, dim)
    assert bias is not None, "few queries come with a bias"
    scores = torch.baddbmm(
        bias.to(query.dtype), rows, keys.reshape(batch, length, dim).transpose(1, 2), alpha=scale
    )
    if prefix is not None:
        together = rows.view(kv_heads, -1, dim)
        ahead = torch.bmm(together, prefix[0].transpose(1, 2)).mul_(scale)
        scores = torch.cat((ahead.view(batch, group * count, -1), scores), -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    result = torch.bmm(weights[:, :, -length:], values.reshape(batch, length, dim))
    if prefix is not None:
        ahead = weights[:, :, :-length].view(kv_heads, requests * group * count, -1)
        result += torch.bmm(ahead, prefix[1]).view(result.shape)
    return result.view(kv_heads, requests, group, count, dim).permute(1, 3, 0, 2, 4)


def _by_fused_kernel(query: Tensor, context: Context, bias: Tensor | None, scale: float) -> Tensor:
    """Many queries: torch's own attention, which shares a head's keys within its group."""
    keys, values, prefix = context
    assert prefix is None, "only few queries are attended with a shared prefix"
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
