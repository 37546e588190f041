"""Ragged attention: its cases, a dense reference, and how near the kernel has to come."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from workbench.kernels.attention import fp8
from workbench.kernels.attention.kernel import Ragged, Space, attend, make_space
from workbench.kernels.spec import Case, Inputs, Outputs, Spec

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}
REASON = (
    "weights and the result are each rounded once to 16 bits (2^-9 at most in bfloat16, rms 0.3 of that), "
    "the weights' roundings averaging out over the keys; scores and sums are float32, where 2^x of a score "
    "near 10 carries 10 roundings. Keys and values of eight bits are exact in 16, and so is what both read"
)
UNTOUCHED = 0.01  # in the rows of padding, before and after


class Batch(NamedTuple):
    """Everything about a batch but its numbers."""

    counts: tuple[int, ...]  # queries of each request
    lengths: tuple[int, ...]  # start + count
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int = 16
    window: int | None = None
    shared: int | None = None  # blocks all have in common; None: not said
    padding: int = 0  # requests without queries, and as many rows of padding
    dtype: torch.dtype = torch.bfloat16
    stored: torch.dtype | None = None  # an FP8 format; None: as queries
    per_head: bool = False  # and scales of each token's head, not of all keys and of all values

    @property
    def blocks(self) -> list[int]:
        """Blocks each request has in its table."""
        return [-(-length // self.block_size) for length in self.lengths]


def make_inputs(batch: Batch, generator: torch.Generator, device: torch.device) -> Inputs:
    """Random queries, keys and values; blocks in random order. Slots no query may see hold NaN."""
    used, pad = sum(batch.counts), batch.padding
    tables, num_blocks = _make_tables(batch, generator, device)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=_drawn(batch.dtype, device))

    cache = draw(2, batch.kv_heads, num_blocks, batch.block_size, batch.head_dim).to(batch.dtype)
    cache[:, :, 0] = float("nan")
    for row, blocks in enumerate(batch.blocks):
        first, length = _first_seen(batch.lengths[row] - batch.counts[row], batch.window), batch.lengths[row]
        slots = torch.arange(blocks * batch.block_size, device=device).view(blocks, batch.block_size)
        unseen = (slots < first) | (slots >= length)
        cache[:, :, tables[row, :blocks].long()] += torch.where(unseen, float("nan"), 0.0)[:, :, None]
    cache, scales = _stored(batch, cache, generator)
    out = torch.full((used + pad, batch.heads * batch.head_dim), float("nan"), device=device)
    out[used:] = UNTOUCHED
    rows = torch.randperm(len(batch.counts), generator=generator, device=device)
    return {
        "query": draw(used + pad, batch.heads, batch.head_dim).to(batch.dtype),
        "cache": cache,
        "ragged": _make_ragged(batch, tables, rows, device),
        "scale": batch.head_dim**-0.5,
        "window": batch.window,
        "max_count": max(batch.counts),
        "max_length": max(batch.lengths),
        "space": make_space(
            len(batch.counts) + pad, used + pad, batch.heads, batch.kv_heads, batch.head_dim, device
        ),
        "out": out.to(batch.dtype),
        "scales": scales,
    }


def _stored(batch: Batch, cache: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """The cache in its own format, plane by plane, and random scales: the same numbers mean others then."""
    if batch.stored is None:
        return cache, None
    scales = torch.tensor([0.7, 0.02], device=cache.device)
    if batch.per_head:
        sizes = cache.shape[:-1]
        scales = torch.randint(121, 132, sizes, generator=generator, device=cache.device, dtype=torch.uint8)
    stored = torch.empty_like(cache, dtype=batch.stored)
    for half, plain in zip(stored, cache, strict=True):
        for head, numbers in zip(half, plain, strict=True):
            head.copy_(fp8.quantise(numbers, torch.ones((), device=cache.device), batch.stored))
    return stored, scales


def _first_seen(start: int, window: int | None) -> int:
    """The first key that a query at `start` sees."""
    return 0 if window is None else max(0, start - window + 1)


def _drawn(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """A GPU draws 16-bit numbers at once, which saves large caches twice their memory."""
    return dtype if device.type == "cuda" else torch.float32


def _make_tables(batch: Batch, generator: torch.Generator, device: torch.device) -> tuple[Tensor, int]:
    """Block tables [requests, most blocks + 1] int32, and blocks in all; unused entries are 0."""
    shared = batch.shared or 0
    own = [blocks - shared for blocks in batch.blocks]
    numbers = 1 + torch.randperm(shared + sum(own), generator=generator, device=device).int()
    tables = torch.zeros(len(own), max(batch.blocks) + 1, dtype=torch.int32, device=device)
    tables[:, :shared] = numbers[:shared]
    at = shared
    for row, blocks in enumerate(own):
        tables[row, shared : shared + blocks] = numbers[at : at + blocks]
        at += blocks
    return tables, 1 + len(numbers)


def _make_ragged(batch: Batch, tables: Tensor, rows: Tensor, device: torch.device) -> Ragged:
    """The batch, its tables in lines of another order; requests of padding name line 0."""

    def ints(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    counts = (*batch.counts, *[0] * batch.padding)
    begins = [sum(counts[:r]) for r in range(len(counts) + 1)]
    starts = [length - count for length, count in zip(batch.lengths, batch.counts, strict=True)]
    moved = torch.empty_like(tables)
    moved[rows] = tables
    padded = torch.cat((rows.int(), ints(*[0] * batch.padding)))
    shared = None if batch.shared is None else ints(batch.shared)
    return Ragged(padded, ints(*starts, *[0] * batch.padding), ints(*begins), moved, shared)


def dense(
    query: Tensor, cache: Tensor, ragged: Ragged, scale: float, window: int | None, space: Space, out: Tensor,
    scales: Tensor | None = None, **bounds: int,
) -> Outputs:  # fmt: skip
    """The same, request by request over gathered keys, with all scores at once."""
    if scales is not None:
        per_head = scales.dtype == torch.uint8
        cache = cache * (fp8.head_scales(scales) if per_head else scales.view(2, 1, 1, 1, 1))
    group = query.shape[1] // cache.shape[1]
    begins, starts, rows = ragged.begins.tolist(), ragged.starts.tolist(), ragged.rows.tolist()
    for r, row in enumerate(rows):
        begin, count = begins[r], begins[r + 1] - begins[r]
        if count == 0:
            continue
        first, length = _first_seen(starts[r], window), starts[r] + count
        positions = torch.arange(starts[r] - first, length - first, device=query.device)
        blocks = ragged.tables[row, : -(-length // cache.shape[3])].long()
        for head in range(cache.shape[1]):
            keys, values = cache[:, head, blocks].flatten(1, 2)[:, first:length]
            queries = query[begin : begin + count, head * group : (head + 1) * group].transpose(0, 1)
            result = (_weights(queries @ keys.T * scale, positions, window) @ values).transpose(0, 1)
            out.view(query.shape)[begin : begin + count, head * group : (head + 1) * group] = result
    return (out,)


def _weights(scores: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Softmax of scores [group, count, length] over what a query at its position sees."""
    keys = torch.arange(scores.shape[-1], device=scores.device)
    hidden = keys[None, :] > positions[:, None]
    if window is not None:
        hidden |= keys[None, :] <= positions[:, None] - window
    return scores.masked_fill_(hidden, float("-inf")).softmax(-1)


def _kernel(**inputs: Any) -> Outputs:
    return (attend(**inputs),)


def make_case(name: str, batch: Batch, timed: bool) -> Case:
    """A case with its bytes (what is shared counts once) and flops (of what is seen)."""
    pairs = seen = 0
    for count, length in zip(batch.counts, batch.lengths, strict=True):
        window = batch.window or length
        pairs += sum(min(window, position + 1) for position in range(length - count, length))
        seen += min(length, window + count - 1)
    seen -= (batch.shared or 0) * batch.block_size * (len(batch.counts) - 1)
    ends = 2 * sum(batch.counts) * batch.heads * batch.head_dim
    a_head = batch.head_dim * (batch.stored or batch.dtype).itemsize + int(batch.per_head)
    moved = 2 * seen * batch.kv_heads * a_head + ends * batch.dtype.itemsize + 4 * sum(batch.blocks)

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return make_inputs(batch, generator, device)

    flops = 4 * pairs * batch.heads * batch.head_dim
    return Case(name, make, moved, flops, timed, batch.dtype)


def _small() -> tuple[Case, ...]:
    half, whole = torch.float16, torch.float32
    batches = {
        "decode": Batch((1, 1, 1), (5, 40, 16), 4, 2, 64, dtype=whole),
        "decode-long-pieces": Batch((1,), (300,), 8, 1, 64, dtype=half),
        "drafts": Batch((3, 1, 4), (20, 9, 37), 4, 4, 64, block_size=8, dtype=half),
        "prompt": Batch((70,), (70,), 2, 1, 64, dtype=half),
        "chunked": Batch((1, 33, 2, 40), (50, 60, 2, 40), 8, 2, 64, block_size=32, padding=2, dtype=half),
        "group-of-7": Batch((1, 2), (30, 21), 7, 1, 80, dtype=whole),
        "window": Batch((1, 4), (90, 40), 2, 1, 128, window=24, dtype=half),
        "window-prompt": Batch((70, 1), (75, 30), 2, 1, 64, window=20, dtype=half),
        "prefix": Batch((1, 1, 1), (40, 70, 33), 4, 2, 64, shared=2, padding=1, dtype=half),
        "prefix-drafts": Batch((2, 1), (340, 300), 2, 1, 80, shared=18, dtype=whole),
        "prefix-and-prompt": Batch((1, 40), (40, 75), 4, 2, 64, shared=2, dtype=half),
        "prefix-of-none": Batch((1, 1), (20, 17), 2, 1, 64, shared=0, dtype=half),
        "one-token": Batch((1,), (1,), 2, 2, 64, dtype=half),
    }
    e4m3, e5m2 = torch.float8_e4m3fn, torch.float8_e5m2
    batches |= {
        "fp8-decode": Batch((1, 1, 1), (5, 40, 16), 4, 2, 64, stored=e4m3, dtype=whole),
        "fp8-chunked": Batch((1, 33, 2, 40), (50, 60, 2, 40), 8, 2, 64, padding=2, stored=e4m3, dtype=half),
        "fp8-group-of-7": Batch((1, 2), (30, 21), 7, 1, 80, block_size=8, stored=e4m3, dtype=half),
        "fp8-window": Batch((1, 70), (90, 75), 2, 1, 128, window=24, stored=e4m3, dtype=half),
        "fp8-prefix": Batch((1, 1, 1), (40, 70, 33), 4, 2, 64, shared=2, padding=1, stored=e4m3, dtype=half),
        "fp8-e5m2": Batch((1, 3), (40, 21), 4, 2, 64, block_size=32, stored=e5m2, dtype=half),
        "fp8-heads": Batch((1, 1, 5), (40, 70, 33), 4, 2, 64, stored=e4m3, per_head=True, dtype=half),
        "fp8-heads-prefix": Batch(
            (1, 1), (340, 300), 4, 2, 80, shared=18, stored=e4m3, per_head=True, dtype=whole
        ),
    }
    return tuple(make_case(f"{name}-{_short(batch)}", batch, False) for name, batch in batches.items())


def _large() -> tuple[Case, ...]:
    qwen, llama = (16, 8, 128), (32, 8, 128)
    ragged = tuple(100 + 7 * i % 1900 for i in range(256))
    batches = {
        "256x600": Batch((1,) * 256, (600,) * 256, *qwen),
        "512x1000": Batch((1,) * 512, (1000,) * 512, *qwen),
        "1024x160": Batch((1,) * 1024, (160,) * 1024, *qwen),
        "256x100..2000": Batch((1,) * 256, ragged, *qwen),
        "1x128": Batch((1,), (128,), *qwen),
        "1x4000": Batch((1,), (4000,), *qwen),
        "1x16384-llama": Batch((1,), (16384,), *llama),
        "32x16384-llama": Batch((1,) * 32, (16384,) * 32, *llama),
        "prefix-256x4096+80": Batch((1,) * 256, (4176,) * 256, *qwen, shared=256),
        "prefix-256x4096+80-llama": Batch((1,) * 256, (4176,) * 256, *llama, shared=256),
        "prompt-8192": Batch((8192,), (8192,), *qwen),
        "prompt-8192-llama": Batch((8192,), (8192,), *llama),
        "mixed-255x600+2048": Batch((1,) * 255 + (2048,), (600,) * 255 + (2048,), *qwen),
    }
    eight = ("256x600", "1x4000", "32x16384-llama", "prefix-256x4096+80-llama", "mixed-255x600+2048")
    for name in eight:
        batches[f"fp8-{name}"] = batches[name]._replace(stored=torch.float8_e4m3fn)
    batches["fp8-heads-256x600"] = batches["fp8-256x600"]._replace(per_head=True)
    return tuple(make_case(name, batch, True) for name, batch in batches.items())


def _short(batch: Batch) -> str:
    return str(batch.dtype).removeprefix("torch.")


SPECS = (Spec("attention", _kernel, dense, (*_small(), *_large()), TOLERANCE, REASON),)
