"""Ragged attention beyond its spec: pieces and prefixes change nothing; a graph serves later batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from workbench.kernels.attention.kernel import Ragged, Space, attend, make_space, space_bytes
from workbench.kernels.attention.spec import SPECS, TOLERANCE, Batch, make_inputs
from workbench.kernels.spec import compare, run_reference

HALF = torch.float16


def draw(batch: Batch, seed: int, device: torch.device) -> dict[str, Any]:
    return make_inputs(batch, torch.Generator(device).manual_seed(seed), device)


def expect(inputs: dict[str, Any]) -> Tensor:
    return run_reference(SPECS[0], inputs)[0]


def check(batch: Batch, inputs: dict[str, Any]) -> None:
    expected = expect(inputs)
    compare((attend(**inputs),), (expected,), TOLERANCE[batch.dtype])
    assert not inputs["space"].counters.any(), "a counter is left for the next launch"


@pytest.mark.parametrize("processors", [1, 8, 64])
@pytest.mark.parametrize("shared", [None, 0, 9])
def test_any_number_of_pieces_gives_the_same_result(
    processors: int, shared: int | None, device: torch.device
):
    batch = Batch((1, 1), (420, 301), 2, 1, 64, shared=shared, dtype=HALF)
    inputs = draw(batch, 0, device)
    check(batch, inputs | {"space": inputs["space"]._replace(processors=processors)})


def test_prompts_with_a_long_context_are_cut_too(device: torch.device):
    batch = Batch((70, 1), (1100, 20), 1, 1, 64, dtype=HALF)
    inputs = draw(batch, 0, device)
    check(batch, inputs | {"space": inputs["space"]._replace(processors=16)})


@pytest.mark.parametrize("rows", [4, 8, 12])
def test_where_there_is_no_room_for_parts_nothing_is_cut(rows: int, device: torch.device):
    batch = Batch((1, 1), (420, 301), 2, 1, 64, shared=9, dtype=HALF)
    inputs = draw(batch, 0, device)
    space: Space = inputs["space"]
    small = Space(space.parts[:rows], space.tops[:rows], space.totals[:rows], space.counters, 64)
    check(batch, inputs | {"space": small})


@pytest.mark.parametrize("window", [1, 16, 17, 4096])
def test_windows_of_any_width(window: int, device: torch.device):
    batch = Batch((1, 3), (50, 33), 2, 1, 64, window=window, dtype=HALF)
    check(batch, draw(batch, 0, device))


@pytest.mark.parametrize("counts", [(1, 3), (70, 2)])
def test_what_has_left_the_window_may_be_anybodys(counts: tuple[int, int], device: torch.device):
    """Blocks behind the window go back to the pool; the table then names the null block, or another's."""
    batch = Batch(counts, (175, 90), 2, 1, 64, window=20, dtype=HALF)
    inputs = draw(batch, 0, device)
    expected = expect(inputs)
    tables = inputs["ragged"].tables
    for r, row in enumerate(inputs["ragged"].rows.tolist()):
        tables[row, : (batch.lengths[r] - counts[r] - 19) // batch.block_size] = 0
    compare((attend(**inputs),), (expected,), TOLERANCE[batch.dtype])


@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 32, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (2, 1), (4, 1), (8, 1)])
def test_groups_and_block_sizes(heads: int, kv_heads: int, block_size: int, device: torch.device):
    batch = Batch((1, 5), (41, 37), heads, kv_heads, 64, block_size=block_size, dtype=torch.float32)
    check(batch, draw(batch, 0, device))


def test_requests_without_queries_may_stand_anywhere_but_first(device: torch.device):
    batch = Batch((40, 0, 3, 0, 70, 1), (40, 0, 30, 16, 80, 9), 1, 1, 64, dtype=HALF)
    check(batch, draw(batch, 0, device))


def test_space_is_as_large_as_was_said():
    sizes = (64, 512, 16, 8, 128)
    space = make_space(*sizes, torch.device("cpu"))
    held = sum(one.numel() * one.element_size() for one in space if isinstance(one, Tensor))
    assert held == space_bytes(*sizes)


LATER = {
    "decode": [
        Batch((1, 1, 1, 1), (900, 1, 333, 64), 16, 8, 128),
        Batch((1, 1), (17, 2000), 16, 8, 128, padding=2),
        Batch((1,), (5,), 16, 8, 128, padding=3),
    ],
    "drafts": [
        Batch((5, 1, 3, 1), (900, 1, 333, 64), 16, 8, 128, padding=0),
        Batch((1, 1, 2), (17, 2000, 40), 16, 8, 128, padding=1),
    ],
    "prefix": [
        Batch((1, 1, 1, 1), (900, 801, 833, 810), 16, 8, 128, shared=50),
        Batch((1, 1, 1, 1), (900, 5, 833, 64), 16, 8, 128, shared=0),
        Batch((1, 1), (2000, 1999), 16, 8, 128, shared=124, padding=2),
    ],
    "mixed": [
        Batch((1, 300, 40, 1), (700, 300, 900, 10), 16, 8, 128),
        Batch((1, 1), (17, 2000), 16, 8, 128, padding=2),
        Batch((299, 12, 31), (1999, 12, 31), 16, 8, 128, padding=1),
    ],
}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LATER)
def test_a_graph_serves_batches_that_came_later(kind: str):
    """Other lengths, tables, counts and prefixes; fewer requests and rows than the graph was made for."""
    device = torch.device("cuda")
    batches = LATER[kind]
    tokens = max(sum(batch.counts) + batch.padding for batch in batches)
    static = roomy(draw(batches[0], 0, device), tokens)
    static |= {
        "max_count": max(max(batch.counts) for batch in batches),
        "max_length": max(max(batch.lengths) for batch in batches),
    }
    attend(**static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend(**static)
    for seed, batch in enumerate(batches * 2):
        later = draw(batch, seed, device)
        expected = expect(later)[: sum(batch.counts)]
        refill(static, later)
        graph.replay()
        compare((static["out"][: sum(batch.counts)],), (expected,), TOLERANCE[batch.dtype])
        assert not static["space"].counters.any()


@pytest.mark.gpu
def test_a_head_may_have_more_numbers_than_32_bits_count():
    batch = Batch((1, 90), (700, 90), 2, 1, 64)
    inputs = draw(batch, 0, torch.device("cuda"))
    blocks = 2**31 // (16 * 64) + 100
    far = inputs["cache"].new_empty(2, 1, blocks, 16, 64)
    far[:, :, -inputs["cache"].shape[2] :] = inputs["cache"]
    ragged: Ragged = inputs["ragged"]
    moved = ragged._replace(tables=ragged.tables + (blocks - inputs["cache"].shape[2]))
    check(batch, inputs | {"cache": far, "ragged": moved})


def roomy(inputs: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The inputs in tensors that hold the largest batch: `tokens` rows, 512 blocks, lines of 128."""
    ragged: Ragged = inputs["ragged"]
    query, cache, out = inputs["query"], inputs["cache"], inputs["out"]
    wide = ragged._replace(tables=ragged.tables.new_zeros(len(ragged.rows), 128))
    return inputs | {
        "query": query.new_zeros(tokens, *query.shape[1:]),
        "cache": cache.new_zeros(*cache.shape[:2], 512, *cache.shape[3:]),
        "ragged": wide,
        "space": make_space(8, tokens, 16, 8, 128, query.device),
        "out": out.new_zeros(tokens, out.shape[1]),
    }


def refill(static: dict[str, Any], later: dict[str, Any]) -> None:
    """Copy a batch over what lies in the graph's tensors; what it leaves free holds NaN."""
    for name in ("query", "out"):
        static[name].fill_(float("nan"))
        static[name][: len(later[name])] = later[name]
    static["cache"].fill_(float("nan"))
    static["cache"][:, :, : later["cache"].shape[2]] = later["cache"]
    for name, target in static["ragged"]._asdict().items():
        source = getattr(later["ragged"], name)
        if source is None:
            continue
        if target.dim() == 2:
            target.zero_()
            target[: len(source), : source.shape[1]] = source
        else:
            target.copy_(source)
