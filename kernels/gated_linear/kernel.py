"""A gate and its other half projected side by side, and multiplied before they leave the processor. Triton.

For the rows of a decode batch: weights stream through shared memory by the copy engine, once, and the matrix
units have more to do than wait for them. What is saved is the pass of SiLU over both halves, its launch, and
the start of the stream, which is asked for before the kernel that makes x has ended. Knows nothing of layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor
from workbench.kernels.launch import early
from workbench.kernels.silu_mul.kernel import silu_times

MOST_ROWS = 128  # of x
# Bytes of weights up to which any number of rows up to 64 is faster here than in a library's product and a
# SiLU; beyond, whole tiles are: 64 or 128 rows (kernels/LOG.md).
SMALL_BYTES = 16 << 20
LEAST_TILES = 132  # programs that fill an H200; where tiles of 64 are fewer, they are cut in two


class Tile(NamedTuple):
    """What one program works on, and with how much."""

    tokens: int  # rows of x, padded
    columns: int  # results: as many rows of the gate, and of the other half
    depth: int  # of the inner dimension, a step
    stages: int


def pays(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `gated_linear` takes these (16 bits, whole tiles, a GPU with the copy engine) and is faster."""
    rows, n, n_in = x.shape[0], weight.shape[0] // 2, weight.shape[1]
    return (
        bias is None
        and x.dtype.itemsize == 2
        and (rows in (64, MOST_ROWS) or (rows < 64 and weight.nbytes <= SMALL_BYTES))
        and n % 64 == 0
        and n_in % 128 == 0
        and (x.device.type == "cpu" or torch.cuda.get_device_capability(x.device)[0] >= 9)
    )


def tile_of(tokens: int, n: int) -> Tile:
    """Shapes found by measuring (kernels/LOG.md): about 190 KiB of a processor's shared memory in all."""
    columns = 64 if n // 64 >= LEAST_TILES else 32
    return Tile(64, columns, 128, 4) if tokens <= 64 else Tile(128, columns, 64, 6)


def gated_linear(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(x @ gate.T) * (x @ up.T).

    Args:
        x: [T, in], contiguous, T at most 128; bfloat16 or float16.
        weight: [2 * n, in], contiguous, dtype of x; the gate's rows, then as many of the other half. n is a
            multiple of 64, in of 128.
        out: [T, n]; where to write.

    Returns:
        [T, n], rounded where the product, silu and its product each round.
    """
    (tokens, n_in), n = x.shape, weight.shape[0] // 2
    tile = tile_of(tokens, n)
    out = x.new_empty((tokens, n)) if out is None else out
    _gated[(n // tile.columns,)](
        TensorDescriptor(x, [tokens, n_in], [n_in, 1], [tile.tokens, tile.depth]),
        TensorDescriptor(weight, [2 * n, n_in], [n_in, 1], [tile.columns, tile.depth]),
        weight, out, tokens, n, n_in,
        T=tile.tokens, COLUMNS=tile.columns, DEPTH=tile.depth, num_warps=4, num_stages=tile.stages,
        **early(x.device),
    )  # fmt: skip
    return out


@triton.jit
def _ask_for(weight, row, n_in, COLUMNS: tl.constexpr, LINES: tl.constexpr):
    """Bring the beginning of some rows of the weights, lines of 64 numbers, to the second-level cache."""
    rows = row + tl.arange(0, COLUMNS)
    places = weight + rows.to(tl.int64)[:, None] * n_in + tl.arange(0, LINES)[None, :] * 64
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _gated(
    x, weights, weight, y, num_rows, n, n_in,
    T: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * COLUMNS
    if EARLY:
        _ask_for(weight, first, n_in, COLUMNS, 2 * DEPTH // 64)
        _ask_for(weight, n + first, n_in, COLUMNS, 2 * DEPTH // 64)
        gdc_launch_dependents()
        gdc_wait()
    gate = tl.zeros([T, COLUMNS], tl.float32)
    up = tl.zeros([T, COLUMNS], tl.float32)
    for k in range(0, n_in, DEPTH):
        h = x.load([0, k])
        gate = tl.dot(h, weights.load([first, k]).T, gate)
        up = tl.dot(h, weights.load([n + first, k]).T, up)
    token = tl.arange(0, T)[:, None]
    at = token * n + first + tl.arange(0, COLUMNS)[None, :]
    tl.store(y + at, silu_times(gate, up, y.dtype.element_ty), mask=token < num_rows)
