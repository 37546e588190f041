"""Small steps over ladders of sizes, captured as CUDA graphs; a step takes the next larger one.

Decodes of one token a request; decodes with drafts, behind each of which something is sampled; and whatever
else computes few tokens of few requests, chunks of prompts most of all. Two graphs a step, forward and draw:
what has to happen between the two does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from tqdm.auto import tqdm

from workbench.runtime.kernel_attention import Bounds, as_many
from workbench.runtime.kernel_step import KernelStep

# Launch by launch a step takes the host 0.7 ms a layer, whatever the device does meanwhile: in llama-8b, at
# 38,000 tokens a second, that is the longer of the two up to 800 tokens; in small models, of more.
CHUNKED = 1024  # tokens of the largest graph that holds chunks
CHUNK_LINES = 16  # and its lines

Action = Callable[[], object]


class Replay(Protocol):
    """An action that was recorded."""

    def replay(self) -> None:
        """Do it again, on whatever its memory holds now."""
        ...


class Pair(NamedTuple):
    forward: Replay
    draw: Replay


class Form(NamedTuple):
    """What one graph serves: every step that has room in it."""

    lines: int  # of the packed array: requests, and tokens sampled
    tokens: int
    most: int  # tokens of a request
    sharing: bool = False  # a common prefix is read once
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


class StepGraphs:
    """Graphs of small steps."""

    def __init__(
        self,
        step: KernelStep,
        most: int,
        max_length: int,
        record: Callable[[Action], Replay],
        sharing_rows: int | None,
        changes: Sequence[int] = (),
        drafts: int = 0,
        verified: int = 0,
        chunked: int = 0,
    ) -> None:
        """`most`: lines of the largest decodes; `max_length`: longest context any replay may see.

        Args:
            sharing_rows: fewest lines whose common prefix is read once; None: none is ever.
            changes: of what adapters may change, each kind has graphs of its own.
            drafts: most that a request verifies beside its token.
            verified: most tokens of a step that verifies any.
            chunked: most tokens of a step.
        """
        self._step = step
        self._max_length = max_length
        self._record = record
        self._decodes = {(False, 0): ladder(most)} | {
            (False, kind): coarse(ladder(most), 1) for kind in changes
        }
        if sharing_rows is not None:
            self._decodes[True, 0] = coarse(ladder(most), sharing_rows)
        self._drafts, self._verified = drafts, coarse(ladder(verified), 2) if drafts else []
        self._lines, largest = min(CHUNK_LINES, most), min(CHUNKED, chunked)
        self._chunked = coarse(ladder(largest), CHUNK_LINES) if largest else []
        self._forwards: dict[Form, Replay] = {}
        self._draws: dict[int, Replay] = {}

    def capture(self) -> None:
        """All of them, of each ladder the largest first, so that the smaller ones live in its memory."""
        for form in tqdm(self._forms(), desc="Capturing graphs", unit="graph", leave=False):
            self.pair(form)

    def _forms(self) -> list[Form]:
        """All there are."""
        found = [self.decodes(size, *way) for way, sizes in self._decodes.items() for size in sizes[::-1]]
        found += [self._verifying(size) for size in self._verified[::-1]]
        return found + [self._chunks(size) for size in self._chunked[::-1]]

    def decodes(self, lines: int, sharing: bool, changes: int = 0) -> Form:
        """Of steps of one token a line, no more than `most` lines."""
        sizes = self._decodes[sharing, changes]
        size = sizes[bisect_left(sizes, lines)]
        return Form(size, size, 1, sharing, changes)

    def verifying(self, tokens: int) -> Form | None:
        """Of steps of so many tokens, drafts among them, all of which sample; None: there is none."""
        size = _at_least(self._verified, tokens)
        return None if size is None else self._verifying(size)

    def _verifying(self, size: int) -> Form:
        return Form(size, size, 1 + self._drafts)

    def chunks(self, tokens: int, lines: int) -> Form | None:
        """Of any steps of so many tokens and lines; None: there is none."""
        size = None if lines > self._lines else _at_least(self._chunked, tokens)
        return None if size is None else self._chunks(size)

    def _chunks(self, size: int) -> Form:
        return Form(self._lines, size, as_many(size))

    def pair(self, form: Form) -> Pair:
        """Its graphs. A capture computes what is packed now, again and without harm."""
        step, lines = self._step, form.lines
        if form not in self._forwards:
            bounds = Bounds(form.most, self._max_length)
            if form.changes:
                action: Action = lambda: step.forward_adapted(lines, bounds, form.changes)  # noqa: E731
            else:
                action = lambda: step.forward(lines, form.tokens, lines, bounds, form.sharing)  # noqa: E731
            self._forwards[form] = self._record(action)
        if lines not in self._draws:
            self._draws[lines] = self._record(lambda: step.draw(lines, lines))
        return Pair(self._forwards[form], self._draws[lines])


def _at_least(sizes: Sequence[int], wanted: int) -> int | None:
    place = bisect_left(sizes, wanted)
    return sizes[place] if place < len(sizes) else None


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
