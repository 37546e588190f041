"""The table of what happened to KV blocks. Knows numpy and the schema; neither pandas nor files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from workbench.engine.events import BlocksChanged
from workbench.trace.schema import Table, complete

Longs = npt.NDArray[np.int64]
Value = TypeVar("Value", int, str, bytes)

KEY_BYTES = 8  # of a key are shown: enough to tell the blocks of a run apart
NOT_SAID = -1


def block_table(told: Sequence[BlocksChanged], began: float) -> Table:
    """A line a block and change, in order; `began` is the clock reading that times are relative to."""
    kinds, reasons, sizes = list[str](), list[str](), list[int]()  # by change
    blocks, groups, places, holders = list[int](), list[int](), list[int](), list[int]()  # by line
    keys, names = list[bytes](), list[str]()
    # Changes lie all over memory: each is looked at once, and all of it.
    for event in told:
        for (
            kind,
            reason,
            its_blocks,
            its_groups,
            its_places,
            its_holders,
            its_keys,
            its_names,
        ) in event.changes:
            size = len(its_blocks)
            kinds.append(kind)
            reasons.append(reason)
            sizes.append(size)
            blocks += its_blocks
            groups += its_groups if len(its_groups) == size else _all(its_groups, size, 0)
            places += its_places if len(its_places) == size else _all(its_places, size, NOT_SAID)
            holders += its_holders if len(its_holders) == size else _all(its_holders, size, 0)
            keys += its_keys if len(its_keys) == size else _all(its_keys, size, b"")
            names += its_names if len(its_names) == size else _all(its_names, size, "")
    changed = [len(event.changes) for event in told]
    steps, times, widths = ([getattr(e, name) for e in told] for name in ("step", "at", "block_size"))
    which = np.array(blocks, np.int64)
    change = np.repeat(np.arange(len(sizes)), sizes)  # by line
    event_of = np.repeat(np.arange(len(told)), changed)[change]
    shown = {key: key[:KEY_BYTES].hex() or None for key in set(keys)}
    said = {name: name or None for name in set(names)}
    positions = _carried(which, np.array(places, np.int64)) * np.array(widths, np.int64)[event_of]
    return complete(
        "blocks",
        {
            "step": np.array(steps, np.int64)[event_of],
            "at_s": (np.array(times, np.float64) - began)[event_of],
            "block": which,
            "group": groups,
            "event": np.array(kinds, np.object_)[change],
            "request_id": list(map(said.__getitem__, names)),
            "holders": holders,
            "position": positions,
            "key": list(map(shown.__getitem__, keys)),
            "reason": np.array(reasons, np.object_)[change],
        },
    )


def _all(said: tuple[Value, ...], size: int, empty: Value) -> tuple[Value, ...]:
    """For each of a change's blocks the one value that stands for all, or `empty` where there is none."""
    assert len(said) < 2, "a column of a KV event is as long as its blocks, or one value, or none"
    return (said or (empty,)) * size


def _carried(blocks: Longs, places: Longs) -> npt.NDArray[np.float64]:
    """Places, where one is not said the block's last one before; NaN where there is none."""
    carried, unsaid = places.astype(np.float64), places == NOT_SAID
    asked = np.zeros(int(blocks.max(initial=-1)) + 1, np.bool_)
    asked[blocks[unsaid]] = True
    lines = np.flatnonzero(asked[blocks])  # of blocks of which one is not said: of a full cache, few
    of, place = blocks[lines], np.arange(len(lines))
    order = np.argsort(of, kind="stable")
    sorted_ = places[lines][order]
    begins = np.diff(of[order], prepend=-1) != 0  # of a block's lines
    begin, latest = (
        np.maximum.accumulate(np.where(at, place, -1)) for at in (begins, sorted_ != NOT_SAID)
    )  # by line, the last such line up to it
    carried[lines[order]] = np.where(latest >= begin, sorted_[latest], np.nan)
    return carried
