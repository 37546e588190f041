"""Products of large weights by the way a library takes when it is to add a bias."""

import pytest
import torch
import torch.nn.functional as F

from workbench.models import products

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
OUT, IN = 2048, 4224  # just over 16 MiB in 16 bits


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [31, 32, 100, 112, 113])
def test_a_product_is_the_same_whichever_way_its_rows_take(rows: int, device: str) -> None:
    """Within one rounding of bfloat16 (2^-8 of the largest) of the product in float64."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, IN, generator=generator).bfloat16().to(device)
    weight = torch.randn(OUT, IN, generator=generator).bfloat16().to(device)
    y = products.product_of(weight, None)(x, weight, None)
    exact = x.double() @ weight.double().t()
    assert y.shape == (rows, OUT)
    assert (y.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_only_large_weights_of_few_outputs_without_a_bias_have_a_way_of_their_own() -> None:
    large = torch.zeros(OUT, IN, dtype=torch.bfloat16)
    assert products.product_of(large, None) is not products.product
    assert products.product_of(large, large[:, 0]) is products.product
    assert products.product_of(large[:, : IN // 2], None) is products.product
    assert products.product_of(torch.zeros(OUT * 3, IN, dtype=torch.bfloat16), None) is products.product


def test_nothing_is_added_to_a_product_with_a_bias_of_its_own() -> None:
    weight, bias, x = torch.eye(OUT, IN), torch.full((OUT,), 3.0), torch.zeros(64, IN)
    torch.testing.assert_close(products.product_of(weight, None)(x, weight, bias), F.linear(x, weight, bias))
