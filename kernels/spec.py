"""What every operation states about itself: inputs, a reference, how near is near enough and why, its floor.

One object serves the tests and the benchmark. Knows nothing of any operation, of triton or of the engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Inputs = dict[str, Any]  # keyword arguments of the operation

# A row holds fewer roundings than the whole to average over, so its error scatters about the mean.
ROW_SLACK = 4.0
# A row much smaller than its neighbours (sums that cancel) carries the roundings of what it was summed from.
SMALL_ROW = 0.05


class Case(NamedTuple):
    """One set of shapes."""

    name: str
    make: Callable[[torch.Generator, torch.device], Inputs]  # fresh random inputs, never zeros
    bytes: int  # each input read once, each output written once
    flops: int
    timed: bool  # large: for a GPU only, and in the table of the benchmark
    dtype: torch.dtype  # looked up in the tolerance


class Spec(NamedTuple):
    """One operation. Both functions take the inputs of a case by name; neither returns a None."""

    name: str
    kernel: Callable[..., Outputs]
    reference: Callable[..., Outputs]
    cases: tuple[Case, ...]
    tolerance: Mapping[torch.dtype, float]  # of ‖out − ref‖ / ‖ref‖, the reference run on float64 inputs
    reason: str  # why that much and not less


def find_specs() -> Iterator[Spec]:
    """Every spec of every operation, by the name of its folder; importing them imports triton."""
    for file in sorted(Path(__file__).parent.glob("*/spec.py")):
        yield from importlib.import_module(f"{__package__}.{file.parent.name}.spec").SPECS


def make_inputs(case: Case, seed: int, device: torch.device) -> Inputs:
    """The case's inputs, the same for the same seed and device."""
    return case.make(torch.Generator(device).manual_seed(seed), device)


def run_reference(spec: Spec, inputs: Inputs) -> Outputs:
    """The reference on copies of the inputs, in float64."""
    return spec.reference(**widen(inputs))


def widen(value: Any) -> Any:
    """Copies of all tensors in a nest of dicts and tuples, the floating ones in float64."""
    if isinstance(value, Tensor):
        return value.to(torch.float64, copy=True) if value.is_floating_point() else value.clone()
    if isinstance(value, dict):
        return {name: widen(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        inner = [widen(one) for one in value]
        return type(value)(*inner) if hasattr(value, "_fields") else tuple(inner)
    return value


def compare(outputs: Outputs, expected: Outputs, tolerance: float) -> None:
    """Hold every output to what is expected, as a whole and row by row (the last dimension is a row).

    Integers have to be equal; so do infinities; NaN never passes.

    Raises:
        AssertionError: names the output, the error and the bound.
    """
    assert len(outputs) == len(expected), f"{len(outputs)} outputs, {len(expected)} expected"
    for i, (found, wanted) in enumerate(zip(outputs, expected, strict=True)):
        assert found.shape == wanted.shape, (
            f"output {i}: shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
        )
        if wanted.is_floating_point():
            _compare_floats(f"output {i}", found, wanted, tolerance)
        else:
            wrong = int((found != wanted).sum())
            assert wrong == 0, f"output {i}: {wrong} of {wanted.numel()} integers differ"


def _compare_floats(name: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    found, wanted = found.double(), wanted.double()
    error = torch.where(found == wanted, 0.0, found - wanted)  # infinities subtract to NaN
    finite = torch.where(wanted.isinf(), 0.0, wanted)
    whole = (error.norm() / finite.norm().clamp(min=1e-300)).item()
    assert whole <= tolerance, f"{name}: error {whole:.2e}, bound {tolerance:.2e}"
    if wanted.dim() < 2 or wanted.numel() == 0:
        return
    size = finite.norm(dim=-1)
    floor = SMALL_ROW * size.square().mean().sqrt().clamp(min=1e-300)
    by_row = (error.norm(dim=-1) / size.clamp(min=floor)).flatten()
    worst = int(by_row.argmax())
    bound = ROW_SLACK * tolerance
    assert by_row[worst].item() <= bound, f"{name}, row {worst}: error {by_row[worst]:.2e}, bound {bound:.2e}"
