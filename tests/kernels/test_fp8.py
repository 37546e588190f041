"""Keys and values of eight bits in the kernels: written as torch casts them, read as they are stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from workbench.kernels.attention import fp8
from workbench.kernels.attention.kernel import attend
from workbench.kernels.attention.reference import Layout, make_places, write_kv
from workbench.kernels.attention.spec import Batch, make_inputs
from workbench.kernels.rotary.kernel import qk_rotary_write

HEADS, DIM = 4, 256  # 64 tokens of every number: the fewest programs for the interpreter


def every_number(dtype: torch.dtype, device: torch.device) -> Tensor:
    """All bit patterns of a 16-bit format, as [tokens, heads, DIM]."""
    return (
        torch.arange(-(2**15), 2**15, dtype=torch.int32)
        .to(torch.int16)
        .view(dtype)
        .view(-1, HEADS, DIM)
        .to(device)
    )


def write(numbers: Tensor, stored: torch.dtype, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The cache a kernel leaves behind, and that of torch's own cast; `numbers` are the values."""
    tokens, device = len(numbers), numbers.device
    qkv = torch.zeros(tokens, 3 * HEADS, DIM, dtype=numbers.dtype, device=device)
    qkv[:, 2 * HEADS :] = numbers
    turn = torch.cat((torch.ones(1, DIM // 2), torch.zeros(1, DIM // 2)), 1).to(device)
    places = torch.arange(tokens, device=device)
    found = torch.ones(2, HEADS, tokens, 1, DIM, device=device).to(stored)
    expected, also = found.clone(), scales.clone()
    qk_rotary_write(
        qkv.view(tokens, -1), torch.zeros_like(places), turn, found, places, HEADS, HEADS, DIM, scales=scales
    )
    keys = torch.zeros_like(numbers)
    write_kv(expected, make_places(places, Layout(HEADS, HEADS, tokens, 1, None)), keys, numbers, also)
    assert torch.equal(scales, also)
    return found[1], expected[1]


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", fp8.FORMATS)
@pytest.mark.parametrize("scale", [1.0, 0.013])
def test_what_the_kernel_writes_is_torchs_cast_of_every_number_to_the_bit(
    device: torch.device, source: torch.dtype, stored: torch.dtype, scale: float
) -> None:
    numbers = every_number(source, device)
    found, expected = write(numbers, stored, torch.tensor([7.0, scale], device=device))
    number = ~numbers.transpose(0, 1).isnan()[:, :, None]
    assert torch.equal(found.view(torch.uint8)[number], expected.view(torch.uint8)[number])
    if device.type == "cuda":  # the interpreter's own cast makes numbers of them
        assert found[~number].float().isnan().all()
    if scale == 1.0:
        plain = numbers.transpose(0, 1)[:, :, None].float()
        within = plain.abs() <= fp8.largest(stored)
        assert torch.equal(found[within].view(torch.uint8), plain[within].to(stored).view(torch.uint8))


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_scales_of_each_head_are_those_of_the_reference_to_the_bit(
    device: torch.device, source: torch.dtype
) -> None:
    numbers = every_number(source, device)
    # A processor that takes denormal float32 numbers for zero, as libraries set it, is not what is tested.
    numbers[numbers.abs().float() < torch.finfo(torch.float32).tiny] = 0.0
    scales = torch.zeros(2, HEADS, len(numbers), 1, dtype=torch.uint8, device=device)
    found, expected = write(numbers, torch.float8_e4m3fn, scales)
    number = ~numbers.transpose(0, 1).isnan()[:, :, None]
    assert torch.equal(found.view(torch.uint8)[number], expected.view(torch.uint8)[number])


@pytest.mark.parametrize("per_head", [False, True])
def test_nothing_of_other_requests_is_read(device: torch.device, per_head: bool) -> None:
    """The rows of a request are the same bits whatever its neighbours hold, be it NaN or infinite."""
    batch = Batch(
        (1, 40, 3), (33, 70, 20), 4, 2, 64, stored=torch.float8_e5m2, per_head=per_head, dtype=torch.float16
    )
    inputs: dict[str, Any] = make_inputs(batch, torch.Generator(device).manual_seed(3), device)
    first = attend(**inputs).clone()
    blocks = inputs["ragged"].tables[inputs["ragged"].rows[1].long()].long()
    for spoilt in (float("nan"), float("inf")):
        cache = inputs["cache"].clone()
        cache.view(torch.uint8)[:, :, blocks] = torch.full((), spoilt).to(torch.float8_e5m2).view(torch.uint8)
        again = attend(**inputs | {"cache": cache})
        for rows in (slice(0, 1), slice(41, 44)):
            assert torch.equal(again[rows], first[rows])
        assert again[1:41].isnan().all()
