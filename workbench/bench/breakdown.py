"""Where the device's time goes: spans of a torch profile, sorted into parts that add up to the wall clock.

Knows kernels by their names only; no engine, no shapes.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

PARTS = ("gemm", "attention", "other", "sampling", "copies")
_COPIES = ("gpu_memcpy", "gpu_memset")
# In this order: an attention kernel of a library says "cutlass" too.
_NAMES = (
    ("attention", re.compile(r"^_(attend|merge)|flash|fmha|attention", re.IGNORECASE)),
    ("sampling", re.compile(r"^_(scan|finish)")),
    ("gemm", re.compile(r"^_(vector|tile|gated)|gemm|cublas|cutlass|nvjet|splitk", re.IGNORECASE)),
)

Result = TypeVar("Result")


class Span(NamedTuple):
    """One kernel, copy or fill on the device."""

    name: str
    part: str  # of PARTS
    start: float  # seconds, from an arbitrary origin
    end: float


class Share(NamedTuple):
    """Time that nobody else is charged with."""

    seconds: float
    calls: int


def profiled(run: Callable[[], Result]) -> tuple[Result, list[Span]]:
    """What `run` returned, and what the GPU did meanwhile.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        result = run()
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        file = Path(folder) / "profile.json"
        profiler.export_chrome_trace(str(file))
        spans = spans_of(json.loads(file.read_text(encoding="utf-8"))["traceEvents"])
    if not spans:
        raise RuntimeError("the profiler saw no kernel: CUPTI is missing, or another profiler holds the GPU")
    return result, spans


def spans_of(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """The device's part of a chrome trace, whose times are microseconds."""
    return [
        Span(
            event["name"],
            part_of(event["name"], event["cat"]),
            event["ts"] / 1e6,
            (event["ts"] + event["dur"]) / 1e6,
        )
        for event in events
        if event.get("ph") == "X" and event.get("cat") in ("kernel", *_COPIES)
    ]


def part_of(name: str, category: str = "kernel") -> str:
    """The part a kernel belongs to, by its name."""
    if category in _COPIES:
        return "copies"
    return next((part for part, pattern in _NAMES if pattern.search(name)), "other")


def charge(spans: Sequence[Span]) -> dict[tuple[str, str], Share]:
    """Seconds and calls by (part, kernel); where two overlap, the one that began first is charged.

    A kernel that starts early waits for the one before it, so that the time is that one's.
    """
    shares: dict[tuple[str, str], Share] = defaultdict(lambda: Share(0.0, 0))
    until = float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        seconds = max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
        before = shares[span.part, span.name]
        shares[span.part, span.name] = Share(before.seconds + seconds, before.calls + 1)
    return dict(shares)


def by_part(shares: Mapping[tuple[str, str], Share]) -> dict[str, Share]:
    """The same by part alone; every part is there."""
    return {
        part: Share(
            sum(share.seconds for (name, _), share in shares.items() if name == part),
            sum(share.calls for (name, _), share in shares.items() if name == part),
        )
        for part in PARTS
    }
