"""Drafts from a request's own tokens: what followed when its last few tokens stood there before.

Prompt lookup (A. Saxena 2023): of the last tokens, the longest run that occurred earlier, where it did last.
Where each run of `shortest` .. `longest` tokens ended last, a hash table of each row tells. A step enters the
tokens that are new and asks once for each length, for all requests at once: what it costs does not depend on
how long they are, but where a request has doubled and its table does. What a table says is compared with the
tokens themselves, so that neither two runs that share a slot nor what an earlier request left behind can do
harm.
"""

from __future__ import annotations

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints, within
from workbench.engine.running import Longs
from workbench.speculate.drafter import Ask

_FACTOR = 0x2545_F491_4F6C_DD1D  # of the runs' hash, a polynomial of their tokens: any odd number

ROOM = 4  # slots a token, at least: of the runs entered, about one in ten is lost to another


def _power(least: int) -> int:
    """The power of two that is that much, or the next larger one."""
    return 1 << (least - 1).bit_length()


class NgramDrafter:
    """Runs of each batch row."""

    def __init__(self, max_rows: int, max_length: int, shortest: int, longest: int) -> None:
        """`shortest`, `longest`: tokens of the runs that are looked up."""
        self._sizes = np.arange(shortest, longest + 1)[:, None]  # [sizes, 1]
        self._back = np.arange(longest)[:, None]  # [longest, 1]; tokens back from a run's end
        self._slots = _power(ROOM * max_length)
        self._masks: Longs = np.zeros(max_rows, np.int64)  # slots in use, less 1
        self._entered: Longs = np.zeros(max_rows, np.int64)  # ends of runs up to there are in the tables
        # By size and row: a slot holds the end of the run that was entered last, 0: none. The system hands
        # out zero pages when they are first touched: rows and lengths nobody has take no memory.
        self._ends: Ints = np.zeros(len(self._sizes) * max_rows * self._slots, np.int32)
        self._tables = np.arange(len(self._sizes))[:, None] * max_rows  # [sizes, 1]

    def enter(self, row: int, token_ids: Ints) -> None:
        self._entered[row] = 0
        self._masks[row] = min(_power(2 * ROOM * len(token_ids)), self._slots) - 1

    def leave(self, row: int, token_ids: Ints, num_prompt_tokens: int) -> None:
        """Nothing of one request serves another."""

    def propose(self, ask: Ask) -> Proposals:
        rows, lengths, most, tokens = ask
        flat, width = tokens.reshape(-1), tokens.shape[1]
        for place in (ROOM * lengths > self._masks[rows] + 1).nonzero()[0].tolist():
            self.enter(rows[place], tokens[rows[place], : lengths[place]])
        # [entered, length - 1]  ends that are new; what follows the last token of all is not known yet
        new = (lengths - 1 - self._entered[rows]).clip(0)
        ends = np.concatenate([self._entered[rows].repeat(new) + 1 + within(new.astype(np.int32)), lengths])
        owners = np.concatenate([rows.repeat(new), rows])
        self._entered[rows] = lengths - 1
        runs = flat[(ends - 1 - self._back).clip(0) + owners * width]  # [longest, ends], the last token first
        slots = self._slots_of(runs, owners)
        fits = ends >= self._sizes
        count = len(ends) - len(rows)
        entering = fits[:, :count]
        self._ends[slots[:, :count][entering]] = np.broadcast_to(ends[:count], entering.shape)[entering]
        found = self._ends[slots[:, count:]].astype(np.int64)  # [sizes, r]
        same = flat[(found - 1 - self._back[:, :, None]).clip(0) + rows * width] == runs[:, None, count:]
        alike = np.minimum.accumulate(same, 0).sum(0)  # tokens in common, of `longest`
        right = fits[:, count:] & (found > 0) & (found < lengths) & (alike >= self._sizes)
        any_right = right.any(0)
        size = len(self._sizes) - 1 - right[::-1].argmax(0)
        begins = found[size, np.arange(len(rows))]
        counts = np.where(any_right, most, 0)
        # A run that overlaps what follows it repeats: beyond the last token it goes on as it went before.
        period = np.maximum(lengths - begins, 1).repeat(counts)
        places = (rows * width + begins).repeat(counts) + within(counts.astype(np.int32)) % period
        return Proposals(counts, flat[places])

    def _slots_of(self, runs: Ints, owners: Longs) -> Longs:
        """[sizes, ends]; where the table of each row and size has the run that ends there."""
        hashed, by_size, masks = np.zeros(runs.shape[1], np.int64), [], self._masks[owners]
        for back, token_ids in enumerate(runs):
            hashed = (hashed + token_ids + 1) * _FACTOR
            if back + 1 >= self._sizes[0, 0]:
                by_size.append(hashed >> 40 & masks)
        found: Longs = (self._tables + owners) * self._slots + np.array(by_size)
        return found
