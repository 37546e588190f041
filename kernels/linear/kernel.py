"""A projection of few rows that reads its weights once, in Triton, with what stands before and after it.

`_vector` holds a slice of the weights in registers and takes the products one row of x after another: for
the fewest rows. `_tile` feeds the matrix units. Knows nothing of layers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _hidden(x, residual, total, at, inside, write, ADD: tl.constexpr):
    """Numbers of x, or of x + residual rounded as a sum of its own; the sum is stored where `write`."""
    h = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        other = tl.load(residual + at, mask=inside, other=0.0)
        h = (h.to(tl.float32) + other.to(tl.float32)).to(h.dtype)
        if write:
            tl.store(total + at, h, mask=inside)
    return h


@triton.jit
def _silu_mul(gate, up, dtype: tl.constexpr):
    gate = gate.to(dtype).to(tl.float32)
    gate = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    return gate * up.to(dtype).to(tl.float32)


@triton.jit
def _fetch(weight, rows, n_in, LINES: tl.constexpr):
    """Ask for whole rows of the weights, a line of 64 numbers each, in the second-level cache."""
    line = tl.minimum(tl.arange(0, LINES), n_in // 64 - 1)
    first = weight + (rows.to(tl.int64) * n_in)[:, None] + line[None, :] * 64
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [first.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _vector(
    x, weight, bias, residual, norm, y, total, n_out, n_in, eps,
    T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, K)
    inside = at < n_in
    valid = rows < n_out
    places = rows.to(tl.int64)[:, None] * n_in + at[None, :]
    mask = None if EVEN else valid[:, None] & inside[None, :]
    w = tl.load(weight + places, mask=mask)
    if GATED:
        other = tl.load(weight + n_out.to(tl.int64) * n_in + places, mask=mask)
    if NORM:
        scale = tl.load(norm + at, mask=inside, other=0.0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    dtype: tl.constexpr = y.dtype.element_ty
    for t in tl.static_range(T):
        h = _hidden(x, residual, total, t * n_in + at, inside, program == t % tl.num_programs(0), ADD)
        if NORM:
            wide = h.to(tl.float32)
            wide = wide * tl.rsqrt(tl.sum(wide * wide) / n_in + eps)
            h = wide.to(dtype) * scale
        h = h.to(tl.float32)[None, :]
        out = tl.sum(w.to(tl.float32) * h, axis=1)
        if BIAS:
            out += tl.load(bias + rows, mask=valid, other=0.0).to(tl.float32)
        if GATED:
            up = tl.sum(other.to(tl.float32) * h, axis=1)
            out = _silu_mul(out, up, dtype)
        tl.store(y + t * n_out + rows, out.to(dtype), mask=valid)


@triton.jit
def _tile(
    x, weight, bias, residual, norm, y, total, num_rows, n_out, n_in, eps,
    M: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
    SWAP: tl.constexpr, EXACT: tl.constexpr, FETCH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    rows = program * BLOCK + tl.arange(0, BLOCK)
    tokens = tl.arange(0, M)
    if PDL:
        if FETCH:
            _fetch(weight, rows, n_in, FETCH)
            if GATED:
                _fetch(weight, rows + n_out, n_in, FETCH)
        gdc_launch_dependents()
        gdc_wait()
    dtype: tl.constexpr = y.dtype.element_ty
    scale = tl.zeros([M], tl.float32)
    if NORM:
        squares = tl.zeros([M], tl.float32)
        at = tl.arange(0, 512)
        for k in range(0, n_in, 512):
            inside = (tokens < num_rows)[:, None] & (k + at < n_in)[None, :]
            h = _hidden(x, residual, total, tokens[:, None] * n_in + k + at[None, :], inside, program == (k // 512) % tl.num_programs(0), ADD)
            wide = h.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
        scale = tl.rsqrt(squares / n_in + eps)
    if SPLIT > 1:
        at = tl.arange(0, SPLIT)[:, None, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, None, :]
        x_at = x + tokens[None, :, None] * n_in + at
        w_at = weight + rows.to(tl.int64)[None, :, None] * n_in + at
        acc = tl.zeros([SPLIT, M, BLOCK], tl.float32)
        acc2 = tl.zeros([SPLIT, M, BLOCK], tl.float32)
        r_at = residual + tokens[None, :, None] * n_in + at
        g_at = norm + at
        token_mask = (tokens < num_rows)[None, :, None]
        row_mask = (rows < n_out)[None, :, None]
        scales = scale[None, :, None]
    else:
        at = tl.arange(0, BLOCK_K)[None, :]
        x_at = x + tokens[:, None] * n_in + at
        w_at = weight + rows.to(tl.int64)[:, None] * n_in + at
        r_at = residual + tokens[:, None] * n_in + at
        g_at = norm + at
        token_mask = (tokens < num_rows)[:, None]
        row_mask = (rows < n_out)[:, None]
        scales = scale[:, None]
        if SWAP:
            acc = tl.zeros([BLOCK, M], tl.float32)
            acc2 = tl.zeros([BLOCK, M], tl.float32)
        else:
            acc = tl.zeros([M, BLOCK], tl.float32)
            acc2 = tl.zeros([M, BLOCK], tl.float32)
    half = n_out.to(tl.int64) * n_in
    for k in tl.range(0, n_in, SPLIT * BLOCK_K, num_stages=STAGES):
        inside = at + k < n_in
        w = tl.load(w_at + k, mask=inside & row_mask, other=0.0)
        if GATED:
            u = tl.load(w_at + half + k, mask=inside & row_mask, other=0.0)
        h = tl.load(x_at + k, mask=inside & token_mask, other=0.0)
        if NORM:
            if ADD:
                h = (h.to(tl.float32) + tl.load(r_at + k, mask=inside & token_mask, other=0.0).to(tl.float32)).to(dtype)
            h = (h.to(tl.float32) * scales).to(dtype) * tl.load(g_at + k, mask=inside, other=0.0)
        if SPLIT > 1:
            acc = tl.dot(h, tl.permute(w, (0, 2, 1)), acc, input_precision=EXACT)
            if GATED:
                acc2 = tl.dot(h, tl.permute(u, (0, 2, 1)), acc2, input_precision=EXACT)
        elif SWAP:
            acc = tl.dot(w, tl.trans(h), acc, input_precision=EXACT)
            if GATED:
                acc2 = tl.dot(u, tl.trans(h), acc2, input_precision=EXACT)
        else:
            acc = tl.dot(h, tl.trans(w), acc, input_precision=EXACT)
            if GATED:
                acc2 = tl.dot(h, tl.trans(u), acc2, input_precision=EXACT)
    if SPLIT > 1:
        out = tl.sum(acc, axis=0)
        up = tl.sum(acc2, axis=0)
    else:
        out = acc
        up = acc2
    if SWAP and SPLIT == 1:
        places = y + tokens[None, :] * n_out + rows[:, None]
        mask = (tokens < num_rows)[None, :] & (rows < n_out)[:, None]
        if BIAS:
            out += tl.load(bias + rows, mask=rows < n_out, other=0.0).to(tl.float32)[:, None]
    else:
        places = y + tokens[:, None] * n_out + rows[None, :]
        mask = (tokens < num_rows)[:, None] & (rows < n_out)[None, :]
        if BIAS:
            out += tl.load(bias + rows, mask=rows < n_out, other=0.0).to(tl.float32)[None, :]
    if GATED:
        out = _silu_mul(out, up, dtype)
    tl.store(places, out.to(dtype), mask=mask)
