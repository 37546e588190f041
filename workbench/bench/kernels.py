"""Every kernel against the machine's own ceilings, measured in the same run, and against its torch reference.

Times are of graph replays over inputs that together pass the second-level cache, as the layers of a model do.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from workbench.kernels.spec import Case, Inputs, Spec

ROTATION_BYTES = 400 << 20  # of inputs and outputs one after the other; an H200's cache holds 60 MB
MAX_SETS = 48
REPLAYS = 15  # the median of so many
COPY_BYTES = 2 << 30
PRODUCT = 8192  # rows, columns and inner dimension of the square product


class Ceilings(NamedTuple):
    """What this machine reaches at best."""

    bytes_per_s: float  # a copy, bytes read plus bytes written
    flops_per_s: float  # a product of bfloat16 matrices of random numbers


def measure(op: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a timed case of every spec, or of those whose name contains `op`; and the ceilings.

    Raises:
        ValueError: no GPU, no triton, or no such operation.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        raise ValueError("kernels are timed on a CUDA device with triton; torch sees none here")
    from workbench.kernels.spec import find_specs

    specs = tuple(find_specs())
    chosen = [spec for spec in specs if op is None or op in spec.name]
    if not chosen:
        raise ValueError(f"no operation {op!r}: there are {', '.join(spec.name for spec in specs)}")
    ceilings = measure_ceilings()
    pairs = [(spec, case) for spec in chosen for case in spec.cases if case.timed]
    bar = tqdm(pairs, desc="Timing", unit="case")
    return [measure_case(spec, case, ceilings) for spec, case in bar], _summary(ceilings)


def _summary(ceilings: Ceilings) -> dict[str, Any]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "copy_tb_per_s": round(ceilings.bytes_per_s / 1e12, 2),
        "matrix_tflop_per_s": round(ceilings.flops_per_s / 1e12, 1),
    }


def measure_ceilings() -> Ceilings:
    """A large copy and a large product, on random numbers: zeros would run faster."""
    return Ceilings(2 * COPY_BYTES / _copy_seconds(), 2 * PRODUCT**3 / _product_seconds())


def _copy_seconds() -> float:
    source = torch.randn(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return _seconds_eager([lambda: target.copy_(source)] * 4)  # a graph would copy at 2.7 TB/s, not 4.3


def _product_seconds() -> float:
    a, b, out = (torch.randn(PRODUCT, PRODUCT, device="cuda").bfloat16() for _ in range(3))
    return seconds_replayed([lambda: torch.mm(a, b, out=out)] * 2)


def measure_case(spec: Spec, case: Case, ceilings: Ceilings) -> dict[str, Any]:
    """Microseconds of kernel and reference, and the kernel's share of what the machine could do."""
    inputs = _rotation(case)
    seconds = seconds_replayed([_call(spec.kernel, one) for one in inputs])
    torch_seconds = _seconds_eager([_call(spec.reference, one) for one in inputs])
    bandwidth, rate = case.bytes / seconds, case.flops / seconds
    return {
        "op": spec.name,
        "case": case.name,
        "us": round(seconds * 1e6, 2),
        "gb_per_s": round(bandwidth / 1e9),
        "tflop_per_s": round(rate / 1e12, 1),
        "of_copy": round(bandwidth / ceilings.bytes_per_s, 2),
        "of_matrix": round(rate / ceilings.flops_per_s, 2),
        "torch_us": round(torch_seconds * 1e6, 1),
        "factor": round(torch_seconds / seconds, 1),
    }


def _rotation(case: Case) -> list[Inputs]:
    from workbench.kernels.spec import make_inputs

    sets = max(2, min(MAX_SETS, -(-ROTATION_BYTES // case.bytes)))
    return [make_inputs(case, seed, torch.device("cuda")) for seed in range(sets)]


def _call(function: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    return lambda: function(**inputs)


def seconds_replayed(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds a call: the median replay of a graph of all of them, one after the other."""
    calls[0]()  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return statistics.median(_seconds(graph.replay) for _ in range(REPLAYS)) / len(calls)


def _seconds_eager(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds a call as torch launches it, the host's part included."""

    def run() -> None:
        for call in calls:
            call()

    run()
    return statistics.median(_seconds(run) for _ in range(3)) / len(calls)


def _seconds(run: Callable[[], Any]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3
