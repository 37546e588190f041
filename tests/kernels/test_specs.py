"""Every operation computes what its reference computes, and the comparison would see it if it did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from workbench.kernels.spec import Case, Outputs, Spec, compare, find_specs, make_inputs, run_reference

SPECS = tuple(find_specs())
PAIRS = [(spec, case) for spec in SPECS for case in spec.cases]
SMALL = [(spec, case) for spec, case in PAIRS if not case.timed]


def name_of(value: Spec | Case) -> str:
    return value.name


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors come full of NaN (integers: their largest value), so that what is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check(spec: Spec, case: Case, device: torch.device) -> None:
    inputs = make_inputs(case, 0, device)
    expected = run_reference(spec, inputs)
    with poisoned_memory():
        outputs = spec.kernel(**inputs)
    compare(outputs, expected, spec.tolerance[case.dtype])


@pytest.mark.parametrize(("spec", "case"), SMALL, ids=name_of)
def test_a_kernel_computes_its_reference(spec: Spec, case: Case, device: torch.device):
    check(spec, case, device)


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "case"), PAIRS, ids=name_of)
def test_a_compiled_kernel_computes_its_reference(spec: Spec, case: Case):
    check(spec, case, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(("spec", "case"), SMALL, ids=name_of)
def test_a_graph_computes_the_reference_on_inputs_that_came_later(spec: Spec, case: Case):
    device = torch.device("cuda")
    static = make_inputs(case, 0, device)
    spec.kernel(**static)  # compiled before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = spec.kernel(**static)
    later = make_inputs(case, 1, device)
    expected = run_reference(spec, later)
    if not refill(static, later):
        return  # plain numbers differ: they are part of the graph
    given = {one.untyped_storage().data_ptr() for one in tensors(static)}
    for output in outputs:
        if output.untyped_storage().data_ptr() not in given:
            output.fill_(float("nan") if output.is_floating_point() else -1)
    graph.replay()
    compare(outputs, expected, spec.tolerance[case.dtype])


def refill(static: object, later: object) -> bool:
    """Copy the tensors of a nest into those of another; whether all that is no tensor is the same."""
    if isinstance(static, Tensor):
        static.copy_(later)
        return True
    if isinstance(static, dict):
        same = [refill(value, later[name]) for name, value in static.items()]
    elif isinstance(static, tuple):
        same = [refill(one, other) for one, other in zip(static, later, strict=True)]
    else:
        same = [static == later]
    return all(same)


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner)


def shifted(output: Tensor) -> Tensor:
    """Every row where its neighbour belongs; a single row: every number."""
    return output.roll(1, 0 if output.dim() and output.shape[0] > 1 else -1)


def with_nan(output: Tensor) -> Tensor:
    spoilt = output.clone()
    spoilt.view(-1)[-1] = float("nan") if output.is_floating_point() else output.view(-1)[-1] + 1
    return spoilt


WRONGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zeros": lambda right, stale: torch.zeros_like(right),
    "stale": lambda right, stale: stale,
    "shifted": lambda right, stale: shifted(right),
    "one number missing": lambda right, stale: with_nan(right),
}


@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_wrong_outputs_are_rejected(spec: Spec, wrong: str):
    """Each output of a spec, spoilt alone, is rejected in at least one of the small cases."""
    cases = [case for case in spec.cases if not case.timed]
    unseen: set[int] | None = None
    for case in cases:
        passing = passing_when_spoilt(spec, case, WRONGS[wrong])
        unseen = passing if unseen is None else unseen & passing
    assert unseen == set(), f"{wrong} in outputs {unseen} of {spec.name} would pass"


def passing_when_spoilt(spec: Spec, case: Case, spoil: Callable[[Tensor, Tensor], Tensor]) -> set[int]:
    cpu = torch.device("cpu")
    right = run_reference(spec, make_inputs(case, 0, cpu))
    stale = run_reference(spec, make_inputs(case, 1, cpu))
    compare(right, right, 0.0)
    passing = set()
    for i, output in enumerate(right):
        old = stale[i] if stale[i].shape == output.shape else torch.zeros_like(output)
        outputs: Outputs = (*right[:i], spoil(output, old), *right[i + 1 :])
        if not rejects(outputs, right, spec.tolerance[case.dtype]):
            passing.add(i)
    return passing


def rejects(outputs: Outputs, expected: Outputs, tolerance: float) -> bool:
    try:
        compare(outputs, expected, tolerance)
    except AssertionError:
        return True
    return False


def test_one_wrong_row_among_many_is_seen():
    right = torch.randn(4096, 8, dtype=torch.float64)
    wrong = right.clone()
    wrong[77] *= 1.05
    assert (wrong - right).norm() / right.norm() < 0.005
    with pytest.raises(AssertionError, match="row 77"):
        compare((wrong,), (right,), 0.005)


def test_equal_infinities_pass_and_others_do_not():
    right = torch.tensor([1.0, float("-inf")], dtype=torch.float64)
    compare((right.float(),), (right,), 1e-6)
    assert rejects((torch.tensor([1.0, 5.0]),), (right,), 1e-2)
    assert rejects((torch.tensor([float("inf"), float("-inf")]),), (right,), 1e-2)
