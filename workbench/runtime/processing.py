"""A step's logits through the engine's logits processors, and whom a processor's failure ends.

Knows rows and processors; nothing of what they are for, nor of the sampler's own options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.engine.plan import Addition, Ints
from workbench.engine.result import Failure
from workbench.logits_processors import BatchUpdate, RowsFailed
from workbench.runtime.batch import Longs
from workbench.runtime.processed_batch import ProcessedBatch

logger = logging.getLogger(__name__)

SPOILT = "it left NaN, an infinite logit or no token at all to sample"


class Failures(NamedTuple):
    """Whom processors failed."""

    rows: tuple[Failure, ...]  # at their first line: what is sampled behind a draft may never count
    lines: Ints | None  # all of them; None: there are none


class Processors:
    """The processors of one engine."""

    def __init__(self, processors: Sequence[Any]) -> None:
        """`processors`: made for this engine, in the order in which they are applied."""
        self._all = list(processors)
        kinds = [(each, each.is_argmax_invariant()) for each in processors]
        self._changing = [each for each, invariant in kinds if not invariant]
        self._invariant = [each for each, invariant in kinds if invariant]
        self._batch = ProcessedBatch()

    def begin(self, asked: Sequence[Addition], rows: Longs, lengths: Longs, tokens: Tensor) -> Passage:
        """Tell all processors whose logits come next; the arguments are those of ProcessedBatch.follow."""
        update = self._batch.follow(asked, rows, lengths, tokens)
        passage = Passage(len(asked), self._changing, self._invariant)
        for processor in self._all:
            passage.tell(processor, update)
        return passage


class Passage:
    """One step's way through the processors."""

    def __init__(self, lines: int, changing: Sequence[Any], invariant: Sequence[Any]) -> None:
        self._changing = changing
        self._invariant = invariant
        self._lines = range(lines)
        self._failed: dict[int, str] = {}  # by line: why its request has to end

    def tell(self, processor: Any, update: BatchUpdate | None) -> None:
        """A processor that loses track of its rows can serve none of them."""
        try:
            processor.update_state(update)
        except Exception as error:
            logger.exception("the logits processor %s failed", type(processor).__qualname__)
            self._blame(processor, self._lines, f"update_state: {type(error).__name__}: {error}")

    def change(self, logits: Tensor) -> Tensor:
        """Through those that may change the largest logit; `logits` [m, vocab] float32, perhaps in place."""
        return self._through(self._changing, logits, self._lines)

    @property
    def shapes(self) -> bool:
        """Whether `shape` changes anything."""
        return bool(self._invariant)

    def shape(self, logits: Tensor, lines: Sequence[int]) -> Tensor:
        """Through the others, once the temperature has been applied; `lines`: those that are not greedy."""
        return self._through(self._invariant, logits, lines)

    def failures(self, rows: Longs) -> Failures:
        """Those of the lines, which are of the batch rows [m], that failed on the way."""
        if not self._failed:
            return Failures((), None)
        firsts = {row: line for line, row in reversed([*enumerate(rows.tolist())])}
        failed = [
            Failure(row, self._failed[line]) for row, line in sorted(firsts.items()) if line in self._failed
        ]
        return Failures(tuple(failed), np.array(sorted(self._failed), np.int32))

    def _through(self, processors: Sequence[Any], logits: Tensor, lines: Sequence[int]) -> Tensor:
        """`lines`: whose tokens this decides, and whom a failure concerns."""
        if not processors:
            return logits
        sound = _can_be_sampled(logits)  # what the model itself spoilt is no processor's fault
        for processor in processors:
            logits = self._apply(processor, logits, lines)
            spoilt = sound & ~_can_be_sampled(logits)
            sound &= ~spoilt
            lost = set(spoilt.nonzero()[:, 0].tolist())
            self._blame(processor, [line for line in lines if line in lost], SPOILT)
        return logits

    def _apply(self, processor: Any, logits: Tensor, lines: Sequence[int]) -> Tensor:
        """What the processor makes of the logits; where it fails, the logits as it leaves them."""
        try:
            changed = processor.apply(logits)
        except RowsFailed as error:
            for line, why in error.errors.items():
                self._blame(processor, {line}.intersection(lines) if line in self._lines else lines, why)
            return logits
        except Exception as error:
            logger.exception("the logits processor %s failed", type(processor).__qualname__)
            self._blame(processor, lines, f"{type(error).__name__}: {error}")
            return logits
        if isinstance(changed, Tensor) and changed.shape == logits.shape:
            return changed.to(logits)
        found = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        self._blame(processor, lines, f"apply returned {found} for logits {list(logits.shape)}")
        return logits

    def _blame(self, processor: Any, lines: Iterable[int], why: str) -> None:
        for line in lines:
            self._failed.setdefault(line, f"logits processor {type(processor).__qualname__}: {why}")


def _can_be_sampled(logits: Tensor) -> Tensor:
    """[m] bool: the largest logit is a number."""
    return torch.isfinite(logits.amax(-1))
