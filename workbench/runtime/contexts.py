"""Where each layer finds the keys and values of a step's buckets: gathered anew, or kept and appended to.

While the same rows decode step after step, their contexts grow by a token each: what was gathered once stays,
and the new keys and values are written behind it. Knows buckets and places, nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.attention.reference import (
    Bucket,
    Context,
    Layout,
    clear_unseen,
    gather,
    read_parts,
    workspace,
)
from workbench.runtime.batch import Inputs
from workbench.runtime.kv_store import KVStore

MOST_BYTES = 2**29  # of kept contexts, over all layers; beyond, they are gathered every step
SLACK = 2  # blocks a context may grow by before it is gathered again


class Region(NamedTuple):
    """One bucket's place in the kept memory of a layer, in lines of head_dim."""

    begin: int
    requests: int
    capacity: int  # blocks of each request
    shared: int  # blocks
    gather: Tensor  # block parts, own then prefix: what fills the region

    def num_own(self, cache: Tensor) -> int:
        """Of the block parts, those ahead of the prefix's."""
        return 2 * cache.shape[1] * self.requests * self.capacity

    def fits(self, bucket: Bucket) -> bool:
        return bucket.shared == self.shared and bucket.width <= self.capacity


class Kept(NamedTuple):
    """What is kept for one KV group; every layer of the group has memory laid out so."""

    regions: tuple[Region, ...]  # of the first buckets
    places: Tensor | None  # where this step's lines go; None: the regions are gathered in this step


class Contexts:
    """The contexts of one step after the other, for every layer; in `dtype`, which is that of queries."""

    def __init__(
        self, store: KVStore, layouts: Sequence[Layout], num_layers: int, dtype: torch.dtype
    ) -> None:
        self._store = store
        self._dtype = dtype
        self._layouts = layouts
        self._kept: list[Kept | None] = [None] * len(layouts)
        self._memory: list[Tensor | None] = [None] * num_layers
        self._inputs: Inputs | None = None
        self._space = torch.empty(0)

    def begin(self, inputs: Inputs) -> None:
        """A step: see what can be kept."""
        self._inputs = inputs
        self._kept = [self._keep(group, buckets, inputs) for group, buckets in enumerate(inputs.buckets)]
        anew = [
            bucket
            for buckets, kept in zip(inputs.buckets, self._kept, strict=True)
            for bucket in buckets[len(kept.regions) if kept else 0 :]
        ]
        self._space = workspace(anew, self._store.layer(0), self._dtype)

    def _keep(self, group: int, buckets: Sequence[Bucket], inputs: Inputs) -> Kept | None:
        decoding = [bucket for bucket in buckets if bucket.count == 1]
        # Rows that stay for one step only are not worth memory of their own.
        if not decoding or inputs.steady == 0:
            return None
        kept, layout = self._kept[group], self._layouts[group]
        if inputs.steady > 1 and kept and all(map(Region.fits, kept.regions, decoding)):
            lines = [
                _lines(region, bucket, inputs.positions, layout)
                for region, bucket in zip(kept.regions, decoding, strict=True)
            ]
            return Kept(kept.regions, torch.cat(lines))
        regions = _lay_out(decoding, layout)
        cache = self._store.layer(0)
        lines_each = cache.shape[3] * sum(region.gather.numel() for region in regions)
        if lines_each * cache.shape[4] * self._dtype.itemsize * len(self._memory) > MOST_BYTES:
            return None
        return Kept(regions, None)

    def each(self, layer: int, group: int, lines: Tensor) -> Iterator[tuple[Bucket, Context]]:
        """The buckets with their contexts; `lines` are what this step wrote, as `write_kv` gives them.

        A context is good until the next one is asked for: they share memory.
        """
        assert self._inputs is not None, "begin() comes first"
        cache, scales = self._store.layer(layer), self._store.scales(layer)
        buckets, kept = self._inputs.buckets[group], self._kept[group]
        regions: tuple[Region, ...] = ()
        if kept is not None:
            regions = kept.regions
            memory = self._fill(layer, kept, buckets, lines)
            for region, bucket in zip(regions, buckets, strict=False):
                yield bucket, _context(memory, region, bucket, cache)
        for bucket in buckets[len(regions) :]:
            yield bucket, gather(cache, bucket, self._space, scales)

    def _fill(self, layer: int, kept: Kept, buckets: Sequence[Bucket], lines: Tensor) -> Tensor:
        """Bring a layer's kept memory up to date with this step; [lines, head_dim]."""
        memory = self._memory[layer]
        if kept.places is not None:
            assert memory is not None, "kept memory was filled in an earlier step"
            return memory.index_copy_(0, kept.places, lines[: len(kept.places)])
        cache, scales = self._store.layer(layer), self._store.scales(layer)
        _, _, _, block_size, head_dim = cache.shape
        wanted = kept.regions[-1].begin // block_size + kept.regions[-1].gather.numel()
        if memory is None or len(memory) < wanted * block_size:
            memory = torch.empty(wanted * block_size, head_dim, dtype=self._dtype, device=cache.device)
            self._memory[layer] = memory
        blockwise = memory.view(-1, block_size * head_dim)
        for region, bucket in zip(kept.regions, buckets, strict=False):
            begin, own = region.begin // block_size, region.num_own(cache)
            behind, end = begin + own, begin + region.gather.numel()
            read_parts(cache, scales, region.gather[:own], blockwise[begin:behind])
            if region.shared:
                read_parts(cache, scales, region.gather[own:], blockwise[behind:end])
            if scales is not None:
                clear_unseen(_own(memory, region, cache), bucket)
        return memory


def _own(memory: Tensor, region: Region, cache: Tensor) -> Tensor:
    """[2, kv_heads, requests, positions, head_dim]: what each request of a region has of its own."""
    _, kv_heads, _, block_size, head_dim = cache.shape
    own = memory[region.begin : region.begin + region.num_own(cache) * block_size]
    return own.view(2, kv_heads, region.requests, region.capacity * block_size, head_dim)


def _context(memory: Tensor, region: Region, bucket: Bucket, cache: Tensor) -> Context:
    _, kv_heads, _, block_size, head_dim = cache.shape
    keys, values = _own(memory, region, cache)[:, :, :, : bucket.width * block_size]
    if not bucket.shared:
        return Context(keys, values, None)
    behind, shared = region.begin + region.num_own(cache) * block_size, bucket.shared * block_size
    return Context(
        keys, values, memory[behind : behind + 2 * kv_heads * shared].view(2, kv_heads, shared, head_dim)
    )


def _lay_out(buckets: Sequence[Bucket], layout: Layout) -> tuple[Region, ...]:
    regions, begin = [], 0
    for bucket in buckets:
        own = bucket.own.view(-1, bucket.width)
        padded = F.pad(own, (0, SLACK)).view(-1)  # the null block's zeros
        parts = padded if bucket.prefix is None else torch.cat((padded, bucket.prefix))
        regions.append(Region(begin, bucket.requests, bucket.width + SLACK, bucket.shared, parts))
        begin += parts.numel() * layout.block_size
    return tuple(regions)


def _lines(region: Region, bucket: Bucket, positions: Tensor, layout: Layout) -> Tensor:
    """Lines of the kept memory for a bucket's new tokens, in the order of `make_places`."""
    length = region.capacity * layout.block_size
    local = positions[bucket.begin : bucket.end] - region.shared * layout.block_size
    first = torch.arange(region.requests, device=positions.device) * length + local
    planes = torch.arange(2 * layout.kv_heads, device=positions.device) * (region.requests * length)
    return (region.begin + first[:, None] + planes).view(-1)
