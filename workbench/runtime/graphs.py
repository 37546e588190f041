"""Decode steps over a ladder of sizes, captured as CUDA graphs; a batch takes the next larger one.

Two graphs a size, forward and draw: what has to happen between the two does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from tqdm.auto import tqdm

from workbench.runtime.kernel_attention import Bounds
from workbench.runtime.kernel_step import KernelStep

VERIFIED = 64  # tokens of the largest graph with drafts

Action = Callable[[], object]


class Replay(Protocol):
    """An action that was recorded."""

    def replay(self) -> None:
        """Do it again, on whatever its memory holds now."""
        ...


class Pair(NamedTuple):
    forward: Replay
    draw: Replay


class Way(NamedTuple):
    """How a step is computed, beside its size."""

    sharing: bool  # a common prefix is read once
    changes: int = 0  # what adapters may change; 0: nobody has one


def ladder(most: int) -> list[int]:
    """Sizes up to `most`, ascending.

    Whole tiles of the products. The four of a layer of llama-8b take 128 us at 32 rows, 126 at 64, 132 at 96,
    140 at 128, 150 at 160, 166 at 192; 184 at 224, 185 at 256; 216 at 288 and at 320; 287 at 416, 425 at 448
    and 311 at 512; 408 at 576 and 394 at 640 (kernels/LOG.md). Lines that are padding cost attention nothing.
    """
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640]
    while sizes[-1] < most:
        sizes.append(sizes[-1] + 64)
    return [size for size in sizes if size < most] + [most]


def coarse(sizes: Sequence[int], least: int) -> list[int]:
    """Powers of two and what lies midway, for batches of at least so many lines; and the last of `sizes`."""
    powers = [1 << n for n in range(sizes[-1].bit_length())]
    kept = {*powers, *(3 * power for power in powers)}
    return [size for size in sizes if size == sizes[-1] or (size in kept and size >= least)]


class DecodeGraphs:
    """Graphs of steps in which every line computes one token."""

    def __init__(
        self,
        step: KernelStep,
        most: int,
        max_length: int,
        record: Callable[[Action], Replay],
        sharing_rows: int | None,
        drafts: int = 0,
        changes: Sequence[int] = (),
    ) -> None:
        """`most`: lines of the largest; `max_length`: longest context any replay may see.

        Args:
            sharing_rows: fewest lines whose common prefix is read once; None: none is ever.
            drafts: most that a line verifies beside its token.
            changes: of what adapters may change, each kind has graphs of its own.
        """
        self._step = step
        self._bounds = Bounds(1, max_length)
        sizes = ladder(most)
        self._sizes = {
            Way(False): sizes,
            Way(True): [] if sharing_rows is None else coarse(sizes, sharing_rows),
        } | {Way(False, kind): coarse(sizes, 1) for kind in changes}
        # Lines have as many tokens as they have: a graph serves whatever fits into its own.
        self._drafting = Bounds(1 + drafts, max_length)
        self._to_verify = [n for n in ladder(VERIFIED) if 1 < n <= most * (1 + drafts)] if drafts else []
        self._verifies: dict[int, Replay] = {}
        self._record = record
        self._forwards: dict[tuple[int, Way], Replay] = {}
        self._draws: dict[int, Replay] = {}

    def capture(self) -> None:
        """All sizes, the largest first, so that the smaller ones live in its memory."""
        wanted = [(size, way) for way, sizes in self._sizes.items() for size in sizes[::-1]]
        for size, way in tqdm(wanted, desc="Capturing graphs", unit="graph", leave=False):
            self.pair(size, *way)
        for size in self._to_verify[::-1]:
            self.verifying(size)

    def size_to_verify(self, tokens: int) -> int | None:
        """The size that serves steps of so many tokens, drafts among them; None: there is none."""
        place = bisect_left(self._to_verify, tokens)
        return self._to_verify[place] if place < len(self._to_verify) else None

    def verifying(self, size: int) -> Pair:
        """The graphs of steps of so many tokens, in lines of any counts, all of which sample."""
        step, bounds = self._step, self._drafting
        if size not in self._verifies:
            self._verifies[size] = self._record(lambda: step.forward(size, size, size, bounds, False))
        if size not in self._draws:
            self._draws[size] = self._record(lambda: step.draw(size, size))
        return Pair(self._verifies[size], self._draws[size])

    def size_for(self, lines: int, sharing: bool, changes: int = 0) -> int:
        """The size that serves so many lines, of which there are no more than `most`."""
        sizes = self._sizes[Way(sharing, changes)]
        return sizes[bisect_left(sizes, lines)]

    def pair(self, size: int, sharing: bool, changes: int = 0) -> Pair:
        """The graphs of a size. A capture computes what is packed now, again and without harm."""
        step, bounds, key = self._step, self._bounds, (size, Way(sharing, changes))
        if key not in self._forwards:
            if changes:
                action: Action = lambda: step.forward_adapted(size, bounds, changes)  # noqa: E731
            else:
                action = lambda: step.forward(size, size, size, bounds, sharing)  # noqa: E731
            self._forwards[key] = self._record(action)
        if size not in self._draws:
            self._draws[size] = self._record(lambda: step.draw(size, size))
        return Pair(self._forwards[key], self._draws[size])


class CudaRecorder:
    """Captures actions as CUDA graphs that share one pool of memory, for they never run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, action: Action) -> Replay:
        # Once for real: kernels are compiled and loaded, and libraries set up, outside the capture.
        action()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads ask of CUDA meanwhile, for another engine say, is their own affair.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            action()
        return graph


class Again:
    """A graph's stand-in: what was recorded is launched anew, piece by piece.

    For the same lines and bounds: kernels choose their tiles by them, and so a step with and one without
    graphs agree to the bit.
    """

    def __init__(self, action: Action) -> None:
        self._action = action

    def replay(self) -> None:
        self._action()


def recorder_for(device: torch.device, eager: bool) -> Callable[[Action], Replay]:
    """What records actions on a device. `eager`: without graphs, as where there are none."""
    return CudaRecorder() if device.type == "cuda" and not eager else Again
