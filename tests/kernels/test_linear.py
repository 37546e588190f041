"""Few rows: which way a projection goes, and what one row has to do with another."""

from __future__ import annotations

import pytest
import torch
from workbench.kernels.linear.kernel import MAX_ROWS, few, few_rows


def draw(*shape: int, device: torch.device) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(0), device=device)


def test_a_row_alone_always_goes_the_few_rows_way():
    assert few(1, torch.empty(151936, 1024, dtype=torch.bfloat16, device="meta"))


def test_more_rows_than_the_kernel_takes_never_do():
    assert not few(MAX_ROWS + 1, torch.empty(8, 8, device="meta"))


def test_several_rows_of_large_weights_are_left_to_the_library():
    assert not few(4, torch.empty(28672, 4096, dtype=torch.bfloat16, device="meta"))
    assert few(4, torch.empty(6144, 1024, dtype=torch.bfloat16, device="meta"))


def test_too_many_rows_are_refused_by_number(device: torch.device):
    x, weight = draw(17, 64, device=device), draw(32, 64, device=device)
    with pytest.raises(ValueError, match="17 rows, at most 16"):
        few_rows(x, weight)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_inputs_are_never_written_to(rows: int, device: torch.device):
    x, residual = draw(rows, 128, device=device), draw(rows, 128, device=device)
    weight, norm = draw(32, 128, device=device), draw(128, device=device)
    copies = [tensor.clone() for tensor in (x, residual, weight, norm)]
    few_rows(x, weight, residual=residual, norm=norm, gated=True)
    for tensor, copy in zip((x, residual, weight, norm), copies, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("rows", [2, 5, 16])
def test_a_row_does_not_depend_on_its_neighbours(rows: int, device: torch.device):
    x, weight = draw(rows, 256, device=device), draw(48, 256, device=device)
    y = few_rows(x, weight).y
    other = x.clone()
    other[1:] = float("nan")
    assert torch.equal(few_rows(other, weight).y[0], y[0])


@pytest.mark.parametrize("rows", [1, 5])
def test_results_go_where_they_are_wanted(rows: int, device: torch.device):
    x, weight = draw(rows, 64, device=device), draw(32, 64, device=device)
    out = x.new_full((rows, 32), float("nan"))
    assert few_rows(x, weight, out=out).y is out
    assert torch.equal(out, few_rows(x, weight).y)
