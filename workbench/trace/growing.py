"""Tables of a run that goes on: they grow as events come, and end as what `derive` makes of all events.

`steps`, `step_requests`, `tokens` and `blocks` only get longer: a line that is there never changes, so a
reader remembers how many it has read. `requests` is worked out anew. A step is there once it is over; those
in flight are left out. Knows numpy and the schema; neither pandas nor files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from workbench.engine.events import Event
from workbench.trace.blocks import block_table
from workbench.trace.chunks import Reached, chunks_of
from workbench.trace.derive import request_table, step_request_table, step_table
from workbench.trace.facts import NAN, Facts, Reader
from workbench.trace.picks import Decode, read_picks, token_table
from workbench.trace.schema import COLUMNS, DTYPES, Table
from workbench.trace.tally import Tally

Name = Literal["requests", "steps", "step_requests", "tokens", "blocks"]
Need = Name | Literal["likelihoods"]  # of tokens: their logprobs, ranks, entropies and top logprobs


class GrowingTable:
    """Columns with room behind their ends: adding lines costs no more than the lines."""

    def __init__(self, name: str) -> None:
        self._size = 0
        self._columns: Table = {c.name: np.empty(0, DTYPES[c.kind]) for c in COLUMNS[name]}

    def __len__(self) -> int:
        return self._size

    def extend(self, lines: Table) -> None:
        """Add lines of the same columns."""
        added = len(next(iter(lines.values())))
        end = self._size + added
        for name, values in lines.items():
            column = self._columns[name]
            if len(column) < end:
                self._columns[name] = column = _widened(column, self._size, max(end, 2 * len(column)))
            column[self._size : end] = values
        self._size = end

    @property
    def lines(self) -> Table:
        """What is there by now; views, which stay as they are when more is added."""
        return {name: column[: self._size] for name, column in self._columns.items()}


def _widened(column: npt.NDArray[Any], size: int, capacity: int) -> npt.NDArray[Any]:
    wider = np.empty(capacity, column.dtype)
    wider[:size] = column[:size]
    return wider


class GrowingTables:
    """The tables of the events taken so far.

    Args:
        names: the tables that are wanted; tokens and blocks cost the most. Without likelihoods, tokens are as
            if nobody had asked how likely they were.
        decode: text of token ids, for `tokens`; prompts and outputs as texts are not worked out here.
    """

    def __init__(self, names: Iterable[Need], decode: Decode | None = None) -> None:
        self.names = frozenset(names)
        self._decode = None if decode is None else _Remembering(decode)
        self._reader = Reader()
        self._reached, self._tally = Reached(), Tally()
        self._tables = {name: GrowingTable(name) for name in ("steps", "step_requests", "tokens", "blocks")}
        self._requests: Table | None = None
        self._collected = NAN  # clock, of the last step that is over
        self._places = np.empty(0)  # by block: position in its request, where it was said

    def take(self, events: Iterable[Event]) -> None:
        """What happened next."""
        self._reader.take(events)
        over = self._reader.settled()
        self._requests = None
        self._take_steps(over)
        if "blocks" in self.names and over.blocks:
            self._take_blocks(block_table(over.blocks, over.began))

    def _take_steps(self, over: Facts) -> None:
        chunks = chunks_of(over, self._reached)
        picks = read_picks(over, chunks, "likelihoods" in self.names)
        self._tally.add(len(over.requests), chunks, picks)
        if not over.steps:
            return
        self._tables["steps"].extend(step_table(over, chunks, self._collected))
        self._tables["step_requests"].extend(step_request_table(over, chunks))
        last = over.steps[-1].committed
        self._collected = NAN if last is None else last.result.collect_s
        if "tokens" in self.names:
            self._tables["tokens"].extend(token_table(over, picks, self._decode))

    def _take_blocks(self, lines: Table) -> None:
        """A place that these lines do not say was said in earlier ones."""
        blocks, positions = lines["block"], lines["position"]
        missing = int(blocks.max()) + 1 - len(self._places)
        self._places = np.pad(self._places, (0, max(missing, 0)), constant_values=NAN)
        unsaid = np.isnan(positions)
        positions[unsaid] = self._places[blocks[unsaid]]
        self._places[blocks] = positions  # the last line of a block wins
        self._tables["blocks"].extend(lines)

    def __getitem__(self, name: Name) -> Table:
        if name != "requests":
            return self._tables[name].lines
        if self._requests is None:
            facts = self._reader.facts
            self._requests = request_table(facts, self._tally, None)
        return self._requests

    @property
    def config(self) -> dict[str, object]:
        """The engine's settings as resolved; empty where nobody said them."""
        return self._reader.facts.config


class _Remembering:
    """Decodes a token on its own once."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._texts: dict[int, str] = {}

    def __call__(self, token_ids: list[int]) -> str:
        (token_id,) = token_ids
        if token_id not in self._texts:
            self._texts[token_id] = self._decode(token_ids)
        return self._texts[token_id]
