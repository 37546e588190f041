"""The reference operations against their formulas in float64, written out with no thought of speed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from workbench.kernels.rms_norm.reference import add_rms_norm, rms_norm
from workbench.kernels.rotary.reference import qk_rotary
from workbench.kernels.silu_mul.reference import silu_mul

# Relative to values near 1: a few roundings of float32, and of 8 or 11 bits of mantissa.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DTYPES = list(TOLERANCE)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0])
def test_rms_norm(dtype: torch.dtype, scale: float) -> None:
    x, weight = draw(5, 64, dtype=dtype) * scale, draw(64, dtype=dtype, seed=1)
    assert_near(rms_norm(x, weight, 1e-5), exact_norm(x, weight, 1e-5))


def test_the_norm_of_zeros_is_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, residual = draw(5, 64, dtype=dtype), draw(5, 64, dtype=dtype, seed=1)
    weight = draw(64, dtype=dtype, seed=2)
    found = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(found.residual, x + residual)
    assert_near(found.y, exact_norm(x + residual, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = draw(5, 64, dtype=dtype) * 3
    gate, up = gate_up.double().chunk(2, -1)
    assert_near(silu_mul(gate_up), gate / (1 + (-gate).exp()) * up)


def exact_turn(head: Tensor, position: int, frequencies: Tensor) -> Tensor:
    """One head, one position: pair i turned by position * frequency i."""
    half = len(head) // 2
    out = torch.empty_like(head)
    for i in range(half):
        cos, sin = (position * frequencies[i]).cos(), (position * frequencies[i]).sin()
        out[i] = head[i] * cos - head[i + half] * sin
        out[i + half] = head[i + half] * cos + head[i] * sin
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("gathered", [True, False])
def test_qk_rotary(dtype: torch.dtype, normed: bool, gathered: bool) -> None:
    num_heads, num_kv_heads, head_dim = 4, 2, 8
    positions = torch.tensor([0, 7, 3, 7])
    frequencies = 10.0 ** -torch.arange(4, dtype=torch.float64)
    angles = torch.arange(9, dtype=torch.float64)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).float()
    qkv = draw(4, 8 * head_dim, dtype=dtype)
    norms = [draw(head_dim, dtype=dtype, seed=s) if normed else None for s in (1, 2)]
    source = (None, table[positions]) if gathered else (positions, table)
    before = qkv.clone()
    found = qk_rotary(qkv, *source, num_heads, num_kv_heads, head_dim, *norms, 1e-5)

    assert torch.equal(qkv, before)
    assert torch.equal(found.v, qkv.view(4, 8, head_dim)[:, 6:])
    q, k = qkv.view(4, 8, head_dim)[:, :4], qkv.view(4, 8, head_dim)[:, 4:6]
    for part, source_heads, norm in ((found.q, q, norms[0]), (found.k, k, norms[1])):
        heads = source_heads.double() if norm is None else exact_norm(source_heads, norm, 1e-5)
        wanted = [
            [exact_turn(h, int(p), frequencies) for h in row] for row, p in zip(heads, positions, strict=True)
        ]
        assert part.dtype == dtype
        assert_near(part, torch.stack([torch.stack(row) for row in wanted]))


def test_only_the_distance_between_positions_shows() -> None:
    """What rotary embeddings are for: q·k depends on how far apart the two are."""
    angles = torch.arange(50.0)[:, None] * 3.0 ** -torch.arange(4.0)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    qkv = draw(1, 24).expand(2, -1).contiguous()

    def score(query: int, key: int) -> float:
        heads = qk_rotary(qkv, torch.tensor([query, key]), table, 1, 1, 8)
        return float(heads.q[0, 0] @ heads.k[1, 0])

    assert score(9, 4) == pytest.approx(score(45, 40), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)
