"""FP8 keys and values as numbers: what is written is torch's cast, and attention reads what was written."""

from __future__ import annotations

import pytest
import torch
from workbench.kernels.attention import fp8
from workbench.kernels.attention.reference import (
    Layout,
    attend,
    make_bucket,
    make_places,
    workspace,
    write_kv,
)


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All bit patterns of a 16-bit format."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", fp8.FORMATS)
def test_what_is_written_is_torchs_cast_of_every_number_and_saturates(
    source: torch.dtype, dtype: torch.dtype
) -> None:
    numbers = every_number(source)
    finite = numbers.isfinite()
    stored = fp8.quantise(numbers, torch.tensor(1.0), dtype)
    within = finite & (numbers.float().abs() <= fp8.largest(dtype))
    assert torch.equal(stored[within].view(torch.uint8), numbers[within].to(dtype).view(torch.uint8))
    beyond = stored[~within & ~numbers.isnan()].float()
    assert torch.equal(
        beyond, fp8.largest(dtype) * numbers[~within & ~numbers.isnan()].float().sign()
    )  # infinities too
    assert stored[numbers.isnan()].float().isnan().all()


@pytest.mark.parametrize("dtype", fp8.FORMATS)
def test_a_power_of_two_is_the_least_that_brings_a_number_into_range(dtype: torch.dtype) -> None:
    edges = fp8.largest(dtype) * torch.tensor([2.0**e for e in range(-60, 60)])
    numbers = torch.cat((edges, edges.nextafter(torch.tensor(torch.inf)), torch.logspace(-15, 15, 999)))
    scales = fp8.power(fp8.exponents(numbers, dtype)).double()
    assert (numbers.double() / scales <= fp8.largest(dtype)).all()
    assert (numbers.double() / (scales / 2) > fp8.largest(dtype)).all()
    assert fp8.power(fp8.exponents(torch.tensor([0.0, torch.inf]), dtype)).isfinite().all()


def test_scales_of_a_power_of_two_lose_nothing_but_the_one_rounding() -> None:
    """Divided and multiplied, a number is what it would be in an FP8 format of another bias."""
    numbers = torch.randn(4096) * torch.logspace(-3, 3, 4096)
    for exponent in (-20, -3, 0, 7):
        scale = fp8.power(torch.tensor(exponent))
        back = fp8.quantise(numbers, scale, torch.float8_e4m3fn).float() * scale
        assert torch.equal(back, back.bfloat16().float()), "a scaled FP8 number is a bfloat16 number"
        exact = fp8.quantise(numbers.double() * 2.0**-exponent, torch.tensor(1.0), torch.float8_e4m3fn)
        assert torch.equal(back.double(), exact.double() * 2.0**exponent)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("window", [None, 7])
def test_attention_over_fp8_is_that_over_the_numbers_it_reads(per_head: bool, window: int | None) -> None:
    """In float64, position by position, over numbers read off the store by hand."""
    torch.manual_seed(0)
    layout = Layout(heads=4, kv_heads=2, num_blocks=9, block_size=4, window=window)
    cache = torch.full((2, 2, 9, 4, 8), float("nan")).to(torch.float8_e4m3fn)
    cache[:, :, 0] = 0
    scales = torch.zeros(2, 2, 9, 4, dtype=torch.uint8) if per_head else torch.tensor([0.5, 0.013])
    blocks = torch.tensor([[3, 1, 5], [2, 7, 0]])
    lengths = [11, 6]
    slots = torch.cat(
        [blocks[r, torch.arange(n) // 4] * 4 + torch.arange(n) % 4 for r, n in enumerate(lengths)]
    )
    keys, values = torch.randn(2, len(slots), 2, 8) * torch.tensor([8.0, 0.1]).view(2, 1, 1, 1)
    lines = write_kv(cache, make_places(slots, layout), keys, values, scales)
    count = 2
    query = torch.randn(2 * count, 4, 8)
    bucket = make_bucket(0, [n - count for n in lengths], count, blocks, layout)
    out = torch.full((2 * count, 32), float("nan"))
    attend(query, cache, [bucket], 0.4, workspace([bucket], cache, query.dtype), out, scales)
    factor = fp8.head_scales(scales).double() if per_head else scales.double().view(2, 1, 1, 1, 1)
    read = (cache.double() * factor).view(2, 2, -1, 8)
    assert torch.equal(
        lines.view(len(slots), 2, 2, 8).double(), read[:, :, slots].permute(2, 0, 1, 3).float()
    )
    for line in range(2 * count):
        request, position = line // count, lengths[line // count] - count + line % count
        first = 0 if window is None else max(0, position - window + 1)
        mine = [int(blocks[request, p // 4]) * 4 + p % 4 for p in range(first, position + 1)]
        for head in range(4):
            k, v = read[:, head // 2, mine]
            weights = (query[line, head].double() @ k.T * 0.4).softmax(-1)
            torch.testing.assert_close(
                out[line, head * 8 : head * 8 + 8].double(), weights @ v, rtol=1e-5, atol=1e-6
            )
