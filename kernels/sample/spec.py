"""Sampling: cases. The outputs are token ids, so the same draws as the reference's are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from workbench.kernels.sample import kernel, reference
from workbench.kernels.sample.reference import Options
from workbench.kernels.spec import Case, Inputs, Outputs, Spec


def _options(
    rows: int,
    generator: torch.Generator,
    device: torch.device,
    heat: tuple[float, float] = (0.6, 1.2),
    k: tuple[int, ...] = (0,),
    p: tuple[float, float] = (1.0, 1.0),
    least: tuple[float, float] = (0.0, 0.0),
) -> Options:
    """Columns spread evenly over the ranges given; k takes its values in turn."""

    def spread(ends: tuple[float, float]) -> Tensor:
        part = torch.rand(rows, generator=generator, device=device)
        return ends[0] + (ends[1] - ends[0]) * part

    def whole(high: int) -> Tensor:
        return torch.randint(0, high, (rows,), generator=generator, device=device)

    ks = torch.tensor(k, device=device)[torch.arange(rows, device=device) % len(k)]
    return Options(spread(heat), ks, spread(p), spread(least), whole(2**62) - 2**61, whole(100_000))


def _mixed(rows: int, generator: torch.Generator, device: torch.device) -> Options:
    """Every kind of row in one batch."""
    options = _options(rows, generator, device, k=(0, 1, 20, 0, 500, 2000), p=(0.2, 1.0), least=(0.0, 0.1))
    line = torch.arange(rows, device=device)
    return options._replace(
        temperature=torch.where(line % 7 == 3, 0.0, options.temperature),
        top_p=torch.where(line % 2 == 0, 1.0, options.top_p),
        min_p=torch.where(line % 3 == 0, options.min_p, 0.0),
    )


KINDS: dict[str, Callable[[int, torch.Generator, torch.device], Options]] = {
    "plain": _options,
    "greedy": lambda *a: _options(*a, heat=(0.0, 0.0)),
    "top-k+p": lambda *a: _options(*a, k=(50, 20, 64, 100), p=(0.8, 0.99)),
    "top-p": lambda *a: _options(*a, p=(0.3, 0.99)),
    "min-p": lambda *a: _options(*a, least=(0.001, 0.2)),
    "mixed": _mixed,
}


def _make(rows: int, vocab: int, kind: str, spread: float, dtype: torch.dtype) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        logits = torch.randn((rows, vocab), generator=generator, device=device) * spread
        return {"logits": logits.to(dtype), "options": KINDS[kind](rows, generator, device)}

    return make


def _case(rows: int, vocab: int, kind: str, spread: float, dtype: torch.dtype, timed: bool) -> Case:
    short = str(dtype).removeprefix("torch.")
    size = rows * (vocab * dtype.itemsize + 48)
    name = f"{kind}-{rows}x{vocab}-{short}"
    return Case(name, _make(rows, vocab, kind, spread, dtype), size, 25 * rows * vocab, timed, dtype)


def _sample(**inputs: Any) -> Outputs:
    return (kernel.sample(**inputs),)


def _reference(logits: Tensor, options: Options) -> Outputs:
    return (reference.draw(reference.shape_logits(logits, options), options),)


_HALF, _FLOAT = torch.float16, torch.float32
_CASES = (
    _case(5, 2600, "plain", 1.0, _HALF, False),
    _case(3, 2601, "plain", 4.0, _FLOAT, False),
    _case(3, 2600, "greedy", 1.0, _HALF, False),
    _case(3, 2600, "top-k+p", 2.0, _HALF, False),
    _case(4, 2600, "top-p", 1.0, _HALF, False),
    _case(4, 2600, "min-p", 2.0, _FLOAT, False),
    _case(7, 2600, "mixed", 2.0, _HALF, False),
    *(_case(1, 151_936, kind, 2.0, torch.bfloat16, True) for kind in ("plain", "top-k+p", "top-p")),
    *(_case(256, 151_936, kind, 2.0, torch.bfloat16, True) for kind in KINDS),
    *(_case(1024, 151_936, kind, 2.0, torch.bfloat16, True) for kind in ("plain", "greedy", "top-k+p")),
    _case(256, 128_256, "plain", 2.0, torch.bfloat16, True),
)

SPECS = (
    Spec(
        "sample",
        _sample,
        _reference,
        _CASES,
        dict.fromkeys((_HALF, _FLOAT, torch.bfloat16), 0.0),
        "token ids: equal but for rounding ties, about one draw in 100,000",
    ),
)
