"""The table of what happened to KV blocks. Knows numpy and the schema; neither pandas nor files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workbench.cache.kv_events import KVEvent
from workbench.engine.events import BlocksChanged
from workbench.trace.schema import Table, complete

Longs = npt.NDArray[np.int64]
Value = TypeVar("Value", int, str, bytes)

KEY_BYTES = 8  # of a key are shown: enough to tell the blocks of a run apart
NOT_SAID = -1


def block_table(told: Sequence[BlocksChanged], began: float) -> Table:
    """A line a block and change, in order; `began` is the clock reading that times are relative to."""
    changes = [change for event in told for change in event.changes]
    steps = [event.step for event in told for _ in event.changes]
    times = [event.at for event in told for _ in event.changes]
    sizes = [len(change.blocks) for change in changes]
    widths = [event.block_size for event in told for _ in event.changes]
    blocks = _column(changes, lambda c: c.blocks, 0)
    places = _carried(blocks, _column(changes, lambda c: c.places, NOT_SAID))
    return complete(
        "blocks",
        {
            "step": np.repeat(np.array(steps, np.int64), sizes),
            "at_s": np.repeat(np.array(times, np.float64) - began, sizes),
            "block": blocks,
            "group": _column(changes, lambda c: c.groups, 0),
            "event": np.repeat(np.array([c.kind for c in changes], np.object_), sizes),
            "request_id": [name or None for name in _values(changes, lambda c: c.names, "")],
            "holders": _column(changes, lambda c: c.holders, 0),
            "position": places * np.repeat(np.array(widths, np.int64), sizes),
            "key": [key[:KEY_BYTES].hex() or None for key in _values(changes, lambda c: c.keys, b"")],
            "reason": np.repeat(np.array([c.reason for c in changes], np.object_), sizes),
        },
    )


def _column(changes: Sequence[KVEvent], column: Callable[[KVEvent], Sequence[int]], empty: int) -> Longs:
    return np.array(_values(changes, column, empty), np.int64)


def _values(
    changes: Sequence[KVEvent], column: Callable[[KVEvent], Sequence[Value]], empty: Value
) -> list[Value]:
    """A value for each block: its own, the one that stands for all, or `empty` where there is none."""
    values: list[Value] = []
    for change in changes:
        said, size = column(change), len(change.blocks)
        if len(said) == size:
            values += said
        else:
            assert len(said) < 2, "a column of a KV event is as long as its blocks, or one value, or none"
            values += (said[0] if said else empty,) * size
    return values


def _carried(blocks: Longs, places: Longs) -> npt.NDArray[np.float64]:
    """Places, where one is not said the block's last one before; NaN where there is none."""
    order = np.argsort(blocks, kind="stable")
    said = places[order] != NOT_SAID
    latest = np.maximum.accumulate(np.where(said, np.arange(len(order)), -1))
    latest = np.where(
        latest >= np.searchsorted(blocks[order], blocks[order]), latest, -1
    )  # of the same block
    carried = np.empty(len(order), np.float64)
    carried[order] = np.where(latest >= 0, places[order][latest], np.nan)
    return carried
