"""Decodes run for the lines of a ladder, with graphs and without: kernels choose their tiles by them."""

from __future__ import annotations

import pytest
import torch

from workbench.runtime.graphs import Again, StepGraphs, ladder, recorder_for
from workbench.runtime.kernel_attention import Bounds


class Step:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def forward(self, *args: object) -> None:
        self.asked.append(("forward", *args))

    def draw(self, *args: object) -> None:
        self.asked.append(("draw", *args))


def test_without_graphs_a_batch_is_computed_as_the_graph_that_would_serve_it_computes_it() -> None:
    step = Step()
    record = recorder_for(torch.device("cuda"), eager=True)
    graphs = StepGraphs(step, 16, 96, record, sharing_rows=3)  # type: ignore[arg-type]
    graphs.capture()
    assert step.asked == [], "nothing is launched before there is a batch"
    for _ in range(2):
        pair = graphs.pair(graphs.decodes(5, sharing=True))
        pair.forward.replay()
        pair.draw.replay()
    assert step.asked == [("forward", 6, 6, 6, Bounds(1, 96), True), ("draw", 6, 6)] * 2


@pytest.mark.parametrize("most", [1, 2, 5, 16, 17, 100, 1024])
def test_every_batch_has_a_size_that_is_less_than_twice_as_large_or_within_a_tile(most: int) -> None:
    sizes = ladder(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    record = recorder_for(torch.device("cpu"), eager=False)
    graphs = StepGraphs(Step(), most, 96, record, sharing_rows=8)  # type: ignore[arg-type]
    for lines in range(1, most + 1):
        assert lines <= graphs.decodes(lines, sharing=False).lines < max(2 * lines, lines + 64)
        if lines >= 8:
            assert lines <= graphs.decodes(lines, sharing=True).lines < max(2 * lines, lines + 64)


def test_a_draw_is_recorded_once_for_graphs_that_share_a_prefix_and_those_that_do_not() -> None:
    recorded = []

    def record(action):  # type: ignore[no-untyped-def]
        recorded.append(action)
        return Again(action)

    graphs = StepGraphs(Step(), 16, 96, record, sharing_rows=8)  # type: ignore[arg-type]
    graphs.capture()
    assert len(recorded) == 2 * len(ladder(16)) + len([8, 12, 16])
