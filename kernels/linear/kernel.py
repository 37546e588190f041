"""A projection of few rows that reads its weights once, in Triton, with what stands before and after it.

One or two rows: `_vector` holds a slice of the weights in registers, and each program norms x for itself.
Three to sixteen: `_tile` feeds the matrix units. Both ask for their weights before the kernel that makes x
has ended. Meaning and roundings are the reference's. Knows nothing of layers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from workbench.kernels.launch import early
from workbench.kernels.linear.reference import Projected
from workbench.kernels.rms_norm.kernel import add_rms_norm, rms_norm
from workbench.kernels.silu_mul.kernel import silu_times

MAX_ROWS = 16  # of x
VECTOR_ROWS = 2  # up to so many, products in registers beat the matrix units, which compute sixteen
# Bytes of weights up to which these kernels beat cuBLAS and separate kernels on an H200 (kernels/LOG.md).
SMALL_BYTES = 16 << 20
SPLIT = 4  # warps that share the inner dimension
DEPTH = 256  # of it, each of them multiplies at a time
TILE = 8  # rows of the weights a program takes


def few(rows: int, weight: Tensor) -> bool:
    """Whether `few_rows` is the faster way to multiply so many rows of x by this weight.

    A single row always. Else small weights only: there cuBLAS starts slowly; large ones it reads as fast.
    """
    return rows <= 1 or (rows <= MAX_ROWS and weight.nbytes <= SMALL_BYTES)


def few_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 1e-6,
    gated: bool = False,
    out: Tensor | None = None,
) -> Projected:
    """Add the residual stream, norm the sum, project it, gate the halves: each where asked for.

    Args:
        x: [T, in], contiguous, T at most 16.
        weight: [out, in], contiguous, dtype of x; gated: the gate's rows, then as many of the other half.
        bias: [out].
        residual: [T, in], contiguous: the stream x is added to; the sum is a new tensor.
        norm: [in], the weight of an RMS norm before the product.
        eps: added to the mean square.
        gated: return silu(first half) * second half.
        out: [T, out] or, gated, [T, out / 2]; where to write.

    Raises:
        ValueError: more rows than 16.
    """
    tokens, n_out = x.shape[0], weight.shape[0] // (2 if gated else 1)
    if tokens > MAX_ROWS:
        raise ValueError(f"x has {tokens} rows, at most {MAX_ROWS} are few: use torch.nn.functional.linear")
    out = x.new_empty((tokens, n_out)) if out is None else out
    if tokens <= VECTOR_ROWS:
        return _launch_vector(x, weight, bias, residual, norm, eps, gated, out)
    total = None
    if residual is not None and norm is not None:
        x, total = add_rms_norm(x, residual, norm, eps)
    elif residual is not None:
        x = total = x + residual
    elif norm is not None:
        x = rms_norm(x, norm, eps)
    _launch_tile(x, weight, bias, gated, out)
    return Projected(out, total)


def _launch_vector(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    gated: bool,
    out: Tensor,
) -> Projected:
    (tokens, n_in), n_out = x.shape, out.shape[1]
    total = None if residual is None else x.new_empty(x.shape)
    width = triton.next_power_of_2(n_in)
    block, warps = vector_shape(n_in, width, gated)
    _vector[(triton.cdiv(n_out, block),)](
        x, weight, _or(bias, x), _or(residual, x), _or(norm, x), out, _or(total, x), tokens, n_out, n_in, eps,
        T=1 if tokens == 1 else VECTOR_ROWS, WIDTH=width, BLOCK=block,
        EVEN=width == n_in and n_out % block == 0, BIAS=bias is not None, ADD=residual is not None,
        NORM=norm is not None, GATED=gated, num_warps=warps, **early(x.device),
    )  # fmt: skip
    return Projected(out, total)


def _launch_tile(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool, out: Tensor) -> None:
    (tokens, n_in), n_out = x.shape, out.shape[1]
    chunks = triton.cdiv(n_in, SPLIT * DEPTH)
    _tile[(triton.cdiv(n_out, TILE),)](
        x, weight, _or(bias, x), out, tokens, n_out, n_in,
        M=MAX_ROWS, BLOCK=TILE, SPLIT=SPLIT, DEPTH=DEPTH, CHUNKS=chunks,
        LINES=triton.next_power_of_2(triton.cdiv(n_in, 64)), EVEN=n_in % (SPLIT * DEPTH) == 0,
        BIAS=bias is not None, GATED=gated, num_warps=SPLIT, **early(x.device),
    )  # fmt: skip


def vector_shape(n_in: int, width: int, gated: bool) -> tuple[int, int]:
    """Results a program computes, and its warps: 128 bytes of weights a thread, or half where padded."""
    block = max(1, min(4, 16384 // width))
    warps = block * (2 if gated else 1) * width // (2048 if width == n_in else 1024)
    return block, max(1, min(8 if width == n_in else 16, warps))


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer has to be passed even where the kernel was compiled not to look at it."""
    return other if tensor is None else tensor


@triton.jit
def _load(places, mask, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(places)
    else:
        return tl.load(places, mask=mask, other=0.0)


@triton.jit(do_not_specialize=["num_rows"])
def _vector(
    x, weight, bias, residual, norm, y, total, num_rows, n_out, n_in, eps,
    T: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # everything is [BLOCK, T, WIDTH] or broadcasts to it, so that nothing changes place between threads
    program = tl.program_id(0)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.arange(0, T)
    column = tl.arange(0, WIDTH)[None, None, :]
    inside = column < n_in
    valid = rows < n_out
    places = rows.to(tl.int64)[:, None, None] * n_in + column
    mask = valid[:, None, None] & inside
    w = _load(weight + places, mask, EVEN)
    if GATED:
        other = _load(weight + tl.cast(n_out, tl.int64) * n_in + places, mask, EVEN)
    if NORM:
        scale = tl.load(norm + column, mask=inside, other=0.0)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    at = tokens[None, :, None] * n_in + column
    real = (tokens < num_rows)[None, :, None] & inside
    h = tl.load(x + at, mask=real, other=0.0)
    if ADD:
        # All programs read the old stream and one of them writes the new one, elsewhere.
        h = (h.to(tl.float32) + tl.load(residual + at, mask=real, other=0.0).to(tl.float32)).to(h.dtype)
        if program == 0:
            tl.store(total + at, h, mask=real)
    if NORM:
        wide = h.to(tl.float32)
        wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=2) / n_in + eps)[:, :, None]
        h = wide.to(h.dtype) * scale
    h = h.to(tl.float32)
    out = tl.sum(w.to(tl.float32) * h, axis=2)
    if BIAS:
        out += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
    if GATED:
        up = tl.sum(other.to(tl.float32) * h, axis=2)
        if BIAS:
            up += tl.load(bias + n_out + rows, mask=valid, other=0.0).to(tl.float32)[:, None]
        out = silu_times(out, up, y.dtype.element_ty)
    at = tokens[None, :] * n_out + rows[:, None]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=(tokens < num_rows)[None, :] & valid[:, None])


@triton.jit
def _fetch(weight, rows, n_in, LINES: tl.constexpr):
    """Ask for whole rows of the weights, a line of 64 numbers each, in the second-level cache."""
    line = tl.minimum(tl.arange(0, LINES) * 64, n_in - 1)
    places = weight + (rows.to(tl.int64) * n_in)[:, None] + line[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [places.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _tile(
    x, weight, bias, y, num_rows, n_out, n_in,
    M: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, DEPTH: tl.constexpr, CHUNKS: tl.constexpr,
    LINES: tl.constexpr, EVEN: tl.constexpr, BIAS: tl.constexpr, GATED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    # [SPLIT, M, DEPTH] · [SPLIT, DEPTH, BLOCK]: each warp multiplies its part of the inner dimension
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = rows < n_out
    rows = tl.minimum(rows, n_out - 1)
    tokens = tl.arange(0, M)
    column = tl.arange(0, SPLIT)[:, None, None] * DEPTH + tl.arange(0, DEPTH)[None, None, :]
    w_at = weight + rows.to(tl.int64)[None, :, None] * n_in + column
    half = tl.cast(n_out, tl.int64) * n_in
    w = _load(w_at, column < n_in, EVEN)
    if GATED:
        u = _load(w_at + half, column < n_in, EVEN)
    if EARLY:
        if CHUNKS > 1:
            _fetch(weight, rows, n_in, LINES)
            if GATED:
                _fetch(weight, rows + n_out, n_in, LINES)
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([SPLIT, M, BLOCK], tl.float32)
    up = tl.zeros([SPLIT, M, BLOCK], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        inside = column + chunk * SPLIT * DEPTH < n_in
        x_at = tokens[None, :, None] * n_in + column + chunk * SPLIT * DEPTH
        h = tl.load(x + x_at, mask=(tokens < num_rows)[None, :, None] & inside, other=0.0)
        acc = tl.dot(h, tl.permute(w, (0, 2, 1)), acc, input_precision="ieee")
        if GATED:
            up = tl.dot(h, tl.permute(u, (0, 2, 1)), up, input_precision="ieee")
        if chunk + 1 < CHUNKS:
            step = (chunk + 1) * SPLIT * DEPTH
            w = _load(w_at + step, column + step < n_in, EVEN)
            if GATED:
                u = _load(w_at + half + step, column + step < n_in, EVEN)
    out = tl.sum(acc, axis=0)
    if BIAS:
        out += tl.load(bias + rows).to(tl.float32)[None, :]
    if GATED:
        second = tl.sum(up, axis=0)
        if BIAS:
            second += tl.load(bias + n_out + rows).to(tl.float32)[None, :]
        out = silu_times(out, second, y.dtype.element_ty)
    at = tokens[:, None] * n_out + rows[None, :]
    tl.store(y + at, out.to(y.dtype.element_ty), mask=(tokens < num_rows)[:, None] & valid[None, :])
