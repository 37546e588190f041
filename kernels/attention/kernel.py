"""Ragged attention over a paged KV cache, in Triton: any mixture of query counts and lengths at once.

A program attends one tile, some queries of one request with the heads that share one KV head, over one piece
of the request's context. Grids come from upper bounds (tensor shapes, max_count, max_length); rows,
counts, lengths and tables are read on the device, so that a graph replays the operation for other batches,
and a program that finds nothing to do ends at once. Knows nothing of requests or schedules.

    context of a request   [0 ........ shared) [shared ............................... position]
    attended by            tiles of all rows    tiles of its own, in some equal pieces
    left behind in         the first slots      the slots after those   (a single part goes straight to out)
    merged by              the last program of a tile to arrive, which knows from a counter that it is
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from workbench.kernels.attention import tiling
from workbench.kernels.attention.programs import _attend, _attend_shared
from workbench.kernels.attention.tiling import Shape, Split, Tile, power_of_two
from workbench.kernels.launch import early

LOG2_E = 1.4426950408889634
MERGED = 4096  # numbers a warp merges at once: 128 registers a thread
PART_ROWS = 65536  # room for parts at the least; 32 MiB for a head of 128
WINDOW_SLACK = 128  # a tile's first key lies up to a step before the window of its first query


class Ragged(NamedTuple):
    """A batch: request r has queries begins[r] .. begins[r + 1] - 1, at positions from starts[r]."""

    rows: Tensor  # [R] int32; line of the table
    starts: Tensor  # [R] int32; position of the first query
    begins: Tensor  # [R + 1] int32; first batch row of each request; the last: rows used in all
    tables: Tensor  # [max_rows, max_blocks] int32; block numbers
    shared: Tensor | None = None  # [1] int32; leading blocks all requests have in common; 0: none


class Space(NamedTuple):
    """Memory for parts that wait to be merged. One serves all layers of a stream, one after the other."""

    parts: Tensor  # [n, head_dim] float32
    tops: Tensor  # [n] float32
    totals: Tensor  # [n] float32
    counters: Tensor  # [c] int32; parts that have arrived at a tile; zero between launches
    processors: int  # of the device; a plain number, so that a launch asks nobody


def make_space(
    max_requests: int, max_tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> Space:
    """Memory for batches of up to `max_requests` requests and `max_tokens` queries; `space_bytes` of it.

    Fewer or more than was said is never wrong: parts that find no room mean fewer pieces.
    """
    rows, counters = _space_sizes(max_requests, max_tokens, heads, kv_heads)
    processors = 4
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return Space(
        torch.empty(rows, head_dim, device=device),
        torch.empty(rows, device=device),
        torch.empty(rows, device=device),
        torch.zeros(counters, dtype=torch.int32, device=device),
        processors,
    )


def space_bytes(max_requests: int, max_tokens: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Bytes that `make_space` allocates."""
    rows, counters = _space_sizes(max_requests, max_tokens, heads, kv_heads)
    return 4 * (rows * (head_dim + 2) + counters)


def _space_sizes(max_requests: int, max_tokens: int, heads: int, kv_heads: int) -> tuple[int, int]:
    """Rows of parts, and counters."""
    # four slots for every head of the largest decode batch, and what fills a GPU with pieces of smaller ones
    return max(PART_ROWS, 4 * max_requests * heads), (max_requests + max_tokens) * kv_heads


def attend(
    query: Tensor,
    cache: Tensor,
    ragged: Ragged,
    scale: float,
    window: int | None,
    max_count: int,
    max_length: int,
    space: Space,
    out: Tensor,
    scales: Tensor | None = None,
) -> Tensor:
    """Attention of a ragged batch over one layer's cache; every key a query may see is already there.

    A query at position p sees keys max(0, p - window + 1) .. p of its request; softmax in float32.

    Args:
        query: [T, heads, head_dim], contiguous; rows beyond begins[R] are padding.
        cache: [2, kv_heads, num_blocks, block_size, head_dim], contiguous, dtype of query or, with scales,
            FP8; keys, then values; of any block_size. Block 0 may hold anything.
        ragged: the batch. Padding requests, of no queries, come last. With `shared`, no query stands at a
            position within the shared blocks, and the first request's table names them.
        scale: of the products of queries and keys.
        window: keys a query sees; None: all before it. With a window nothing is shared.
        max_count: upper bound of the queries a request has; one that has more is left to others, and its
            rows of `out` with it.
        max_length: upper bound of start + count.
        space: from `make_space`; its contents are nobody's between launches, its counters zero.
        out: [T, heads * head_dim], contiguous, dtype of query; rows of padding are left as they are.
        scales: of a cache in FP8, as fp8.py has them; read on the device.

    Returns:
        `out`.
    """
    assert all(one.is_contiguous() for one in (query, cache, out)), "query, cache and out are contiguous"
    assert (scales is None) == (cache.dtype == query.dtype), "a cache in FP8 comes with scales"
    kv_heads, group = cache.shape[1], query.shape[1] // cache.shape[1]
    sizes = (query.element_size(), space.processors, cache.element_size())
    shape = Shape(group, kv_heads, query.shape[2], *sizes)
    if window is not None:
        max_length = min(max_length, window + max_count + WINDOW_SLACK)
    batch = _Batch(query, cache, scales, ragged, scale * LOG2_E, window or 0, max_length, space, out, shape)
    if max_count * group > tiling.FEW_ROWS:
        few = max(1, 16 // group)
        _attend_requests(batch, few, None, mixed=True)
        _attend_tiles(batch, few, max_count)
    elif ragged.shared is None or window is not None:
        _attend_requests(batch, max_count, None)
    else:
        _attend_requests(batch, max_count, _attend_prefix(batch))
    return out


class _Batch(NamedTuple):
    """The arguments of `attend`, and what follows from them."""

    query: Tensor
    cache: Tensor
    scales: Tensor | None
    ragged: Ragged
    scale: float  # in units of log2
    window: int  # 0: none
    max_length: int
    space: Space
    out: Tensor
    shape: Shape

    @property
    def factors(self) -> Tensor:
        """The scales, or something that nobody looks at."""
        return self.query if self.scales is None else self.scales

    @property
    def _fp8(self) -> int:
        """As the walk has it."""
        if self.scales is None:
            return 0
        of_heads = 2 if self.scales.dtype == torch.uint8 else 1
        return of_heads if self.query.is_cuda else of_heads + 2

    @property
    def constants(self) -> dict[str, Any]:
        """What every program is compiled and launched with."""
        exact = self.query.dtype == torch.float32
        # No product's depth is less than 16 numbers; of eight bits, even and odd ones are multiplied apart.
        least = 16 if self.scales is None else 32
        return {
            "GROUP": self.shape.group,
            "BLOCK_SIZE": self.cache.shape[3],
            "D": self.shape.head_dim,
            "BLOCK_D": max(least, power_of_two(self.shape.head_dim)),
            "WIDE": self.cache.stride(1) >= 2**31,
            "PRECISION": "ieee" if exact else "tf32",
            "FP8": self._fp8,
            **early(self.query.device),
        }


class _Common(NamedTuple):
    """How the shared prefix was cut."""

    split: Split
    keys: int  # of one step along it


def _room(batch: _Batch, slot_rows: int, tiles: int) -> int:
    """Slots there is memory for; one is none at all, for a single part needs no merging."""
    if tiles * batch.shape.kv_heads > batch.space.counters.shape[0]:
        return 1
    return batch.space.tops.shape[0] // slot_rows


def _attend_prefix(batch: _Batch) -> _Common | None:
    """All rows over the shared blocks, into the slots that follow the first; None: there is no room."""
    query, cache, ragged, space = batch.query, batch.cache, batch.ragged, batch.space
    tile = tiling.shared_tile(batch.shape)
    slot_rows = query.shape[0] * query.shape[1]
    tiles = -(-query.shape[0] // tile.queries)
    split = tiling.shared_split(batch.shape, tiles, _room(batch, slot_rows, query.shape[0]) - 1)
    if split.pieces < 1:
        return None
    _attend_shared[(batch.shape.kv_heads, tiles, split.pieces)](
        query, cache[0], cache[1], batch.factors, ragged.rows, ragged.begins, ragged.tables, ragged.shared,
        space.parts, space.tops, space.totals, batch.scale, ragged.rows.shape[0], ragged.tables.shape[1],
        cache.stride(1), *split, slot_rows,
        BLOCK_M=tile.rows, QUERIES=tile.queries, BLOCK_N=tile.keys, num_warps=tile.warps,
        num_stages=tile.stages, **batch.constants,
    )  # fmt: skip
    return _Common(split, tile.keys)


def _attend_requests(batch: _Batch, most: int, common: _Common | None, mixed: bool = False) -> None:
    """Requests of up to `most` queries, a tile each. `mixed`: there may be others in the batch."""
    requests = batch.ragged.rows.shape[0]
    # Mixed batches of any size run the same two programs, which are compiled before the first one comes.
    shape = batch.shape._replace(stored=batch.shape.itemsize) if mixed else batch.shape
    tile = tiling.few_tile(shape, most, requests)
    tile_rows = requests * batch.shape.kv_heads * tile.queries * batch.shape.group
    slot_rows = tile_rows if mixed else batch.query.shape[0] * batch.query.shape[1]
    room = _room(batch, slot_rows, requests) - (common.split.pieces if common else 0)
    split = tiling.few_split(batch.shape, requests, batch.max_length, room)
    _launch(
        batch, tile, split, requests, slot_rows, common, 0, most,
        BLOCK_R=0, BY_TOKEN=not mixed, FOLD=mixed, SPLIT=mixed or split.pieces > 1,
    )  # fmt: skip


def _attend_tiles(batch: _Batch, least: int, most: int) -> None:
    """Requests of more than `least` queries and up to `most`, as many tiles as they need."""
    requests = batch.ragged.rows.shape[0]
    tile = tiling.many_tile(batch.shape, most)
    tiles = batch.query.shape[0] // tile.queries + requests
    slot_rows = tiles * batch.shape.kv_heads * tile.queries * batch.shape.group
    split = tiling.many_split(batch.shape, tiles, batch.max_length, _room(batch, slot_rows, tiles))
    # For the largest batch there is, not for this one: mixed batches of any size run the same code.
    most_requests = power_of_two(max(requests, batch.ragged.tables.shape[0]))
    _launch(
        batch, tile, split, tiles, slot_rows, None, least, most,
        BLOCK_R=most_requests, BY_TOKEN=False, FOLD=True, SPLIT=split.pieces > 1,
    )  # fmt: skip


def _launch(
    batch: _Batch,
    tile: Tile,
    split: Split,
    tiles: int,
    slot_rows: int,
    common: _Common | None,
    low: int,
    high: int,
    **flags: int,
) -> None:
    """Requests of more than `low` queries and no more than `high`. FOLD: parts are merged slot by slot."""
    ragged, space, constants = batch.ragged, batch.space, batch.constants
    shared = common or _Common(Split(0, 1), 0)
    slots = 1 if flags["FOLD"] else power_of_two(split.pieces + shared.split.pieces)
    at_once = MERGED * tile.warps // constants["BLOCK_D"]  # rows, of one slot or of all
    few = at_once // (2 if flags["FOLD"] else slots)
    _attend[(batch.shape.kv_heads, tiles, split.pieces)](
        batch.query, batch.cache[0], batch.cache[1], batch.factors, batch.out, ragged.rows, ragged.starts,
        ragged.begins, ragged.tables, ragged.rows if ragged.shared is None else ragged.shared,
        space.parts, space.tops, space.totals, space.counters, batch.scale, ragged.rows.shape[0],
        ragged.tables.shape[1], batch.cache.stride(1), *split, slot_rows, *shared.split, low, high,
        SLOTS=slots, FEW=max(1, min(tile.rows, few)), SHARED_N=shared.keys, WINDOW=batch.window,
        TWO_WALKS=(tile.rows > 64 or batch.scales is not None) and not batch.window,
        BLOCK_M=tile.rows, QUERIES=tile.queries, BLOCK_N=tile.keys, num_warps=tile.warps,
        num_stages=tile.stages, **constants, **flags,
    )  # fmt: skip
