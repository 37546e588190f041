"""A step's flat inputs: their cases. Integers, so nothing may differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from workbench.kernels.spec import Case, Inputs, Outputs, Spec
from workbench.kernels.step_inputs import kernel, reference

BLOCK_SIZE = 16
MAX_ROWS, MAX_LENGTH = 64, 128
WIDE = 4096  # length of a row in the timed cases


def _table(generator: torch.Generator, device: torch.device, high: int, *shape: int) -> Tensor:
    return torch.randint(1, high, shape, generator=generator, device=device, dtype=torch.int32)


def _lines(generator: torch.Generator, device: torch.device, high: int, count: int) -> Tensor:
    """Distinct lines, of which the last few are padding."""
    lines = torch.randperm(high, generator=generator, device=device)[:count].to(torch.int32)
    lines[count - count // 4 :] = -1
    return lines


def _make_step(requests: int, count: int, spare: int, rows: int, length: int, groups: int) -> Any:
    """`requests` of up to `count` tokens, a quarter of them padding, and `spare` tokens nobody uses."""

    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        counts = torch.randint(1, count + 1, (requests,), generator=generator, device=device)
        lines = _lines(generator, device, rows, requests)
        counts[lines < 0] = 0
        begins = torch.zeros(requests + 1, dtype=torch.int32, device=device)
        begins[1:] = counts.cumsum(0)
        return {
            "rows": lines,
            "starts": _table(generator, device, length - count, requests),
            "begins": begins,
            "tokens": _table(generator, device, 150_000, rows, length),
            "tables": tuple(
                _table(generator, device, 9999, rows, length // BLOCK_SIZE) for _ in range(groups)
            ),
            "block_size": BLOCK_SIZE,
            "num_tokens": requests * count + spare,
        }

    return make


def _make_append(count: int, rows: int) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return {
            "tokens": _table(generator, device, 150_000, rows, MAX_LENGTH),
            "rows": _lines(generator, device, rows, count),
            "lengths": _table(generator, device, MAX_LENGTH, count),
            "ids": _table(generator, device, 150_000, count).long(),
        }

    return make


def _make_growth(count: int, rows: int) -> Any:
    def make(generator: torch.Generator, device: torch.device) -> Inputs:
        return {
            "tables": tuple(_table(generator, device, 9999, rows, 8) for _ in range(2)),
            "rows": torch.stack([_lines(generator, device, rows, count) for _ in range(2)]),
            "places": _table(generator, device, 8, 2, count),
            "blocks": _table(generator, device, 9999, 2, count),
        }

    return make


def _step(operation: Any) -> Any:
    def run(*, num_tokens: int, **inputs: Any) -> Outputs:
        tables = inputs["tables"]
        outputs = [
            torch.empty(num_tokens, dtype=torch.int64, device=tables[0].device)
            for _ in range(2 + len(tables))
        ]
        operation(**inputs, token_ids=outputs[0], positions=outputs[1], slots=tuple(outputs[2:]))
        return tuple(outputs)

    return run


def _append(operation: Any) -> Any:
    def run(tokens: Tensor, **inputs: Any) -> Outputs:
        tokens = tokens.clone()
        operation(tokens, **inputs)
        return (tokens,)

    return run


def _growth(operation: Any) -> Any:
    def run(tables: tuple[Tensor, ...], **inputs: Any) -> Outputs:
        tables = tuple(table.clone() for table in tables)
        operation(tables, **inputs)
        return tables

    return run


def _step_case(name: str, requests: int, count: int, spare: int, groups: int, timed: bool) -> Case:
    rows, length = (1024, WIDE) if timed else (MAX_ROWS, MAX_LENGTH)
    tokens = requests * count + spare
    size = tokens * (16 + 4 + groups * 12) + 12 * requests
    make = _make_step(requests, count, spare, rows, length, groups)
    return Case(name, make, size, 0, timed, torch.int64)


_STEPS = (
    _step_case("decode-5", 5, 1, 3, 1, False),
    _step_case("mixed-2-groups", 20, 30, 9, 2, False),
    _step_case("decode-1024", 1024, 1, 0, 1, True),
    _step_case("mixed-8192", 256, 32, 0, 1, True),
)
_EXACT = {torch.int64: 0.0}
_REASON = "integers: nothing is rounded"

SPECS = (
    Spec("lay_out", _step(kernel.lay_out), _step(reference.lay_out), _STEPS, _EXACT, _REASON),
    Spec(
        "append",
        _append(kernel.append),
        _append(reference.append),
        (Case("50-of-64", _make_append(50, 64), 50 * 20, 0, False, torch.int64),),
        _EXACT,
        _REASON,
    ),
    Spec(
        "apply_growth",
        _growth(kernel.apply_growth),
        _growth(reference.apply_growth),
        (Case("40-in-2-groups", _make_growth(40, 64), 2 * 40 * 16, 0, False, torch.int64),),
        _EXACT,
        _REASON,
    ),
)
