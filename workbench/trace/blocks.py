"""The table of what happened to KV blocks. Knows numpy and the schema; neither pandas nor files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.cache.journal import KEY_BYTES, REASONS, Change
from workbench.engine.events import BlocksChanged
from workbench.trace.schema import Table, complete

Longs = npt.NDArray[np.int64]

_NAMES = np.array([change.name.lower() for change in Change], np.object_)
_REASONS = np.array(REASONS, np.object_)


def block_table(told: Sequence[BlocksChanged], began: float) -> Table:
    """A line a change, in order; `began` is the clock reading that times are relative to."""
    sizes = [len(event.blocks) for event in told]
    blocks, positions = _join(told, lambda e: e.blocks), _join(told, lambda e: e.positions)
    return complete(
        "blocks",
        {
            "step": np.repeat(np.array([event.step for event in told], np.int64), sizes),
            "at_s": np.repeat(np.array([event.at for event in told], np.float64) - began, sizes),
            "block": blocks,
            "group": _join(told, lambda e: e.groups),
            "event": _NAMES[_join(told, lambda e: e.kinds)],
            "request_id": [name or None for event in told for name in event.request_ids],
            "holders": _join(told, lambda e: e.holders),
            "position": _carried(blocks, positions),
            "key": _hex(b"".join(event.keys.tobytes() for event in told)),
            "reason": _REASONS[_join(told, lambda e: e.reasons)],
        },
    )


def _join(told: Sequence[BlocksChanged], column: Callable[[BlocksChanged], npt.NDArray[Any]]) -> Longs:
    return (
        np.concatenate([column(event) for event in told]).astype(np.int64) if told else np.empty(0, np.int64)
    )


def _carried(blocks: Longs, positions: Longs) -> npt.NDArray[np.float64]:
    """Positions, where one is not said the block's last one before; NaN where there is none."""
    order = np.argsort(blocks, kind="stable")
    said = positions[order] >= 0
    latest = np.maximum.accumulate(np.where(said, np.arange(len(order)), -1))
    latest = np.where(
        latest >= np.searchsorted(blocks[order], blocks[order]), latest, -1
    )  # of the same block
    carried = np.empty(len(order), np.float64)
    carried[order] = np.where(latest >= 0, positions[order][latest], np.nan)
    return carried


def _hex(keys: bytes) -> list[str | None]:
    width = 2 * KEY_BYTES
    text, none = keys.hex(), "0" * width
    found = [text[begin : begin + width] for begin in range(0, len(text), width)]
    return [None if key == none else key for key in found]
