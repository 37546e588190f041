"""The matchers of a batch's constrained rows: masks for the step in hand, tokens taken when they are known.

A constrained row is in a step only when its last token has been taken, which the planner sees to; the masks
of a step are filled while the device computes it. Knows rows and grammars; nothing of backends or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from workbench.engine.plan import Addition, Ints, StepPlan
from workbench.engine.result import Failure
from workbench.params import StructuredOutputsParams
from workbench.runtime.batch import Longs
from workbench.structured.grammar import CompiledGrammar, Matcher

logger = logging.getLogger(__name__)

_NO_WAY_ON = "its other options leave no token that its grammar allows"

Compile = Callable[[StructuredOutputsParams], CompiledGrammar]


class Constrained(NamedTuple):
    """The rows of a step that sample under a constraint."""

    lines: Longs  # [k]; which of the rows that sample
    rows: Longs  # [k]; batch rows
    bits: Ints  # [k, words]; bit i % 32 of word i // 32 is set: token i may come
    matchers: tuple[Matcher, ...]


class Constraints:
    """A matcher for each row that asks for structured output."""

    def __init__(self, compile_grammar: Compile, vocab_size: int) -> None:
        """`compile_grammar` finds what was compiled when the request was added."""
        self._compile = compile_grammar
        self._words = -(-vocab_size // 32)
        self._matchers: dict[int, Matcher] = {}  # by row

    def clear(self) -> None:
        self._matchers.clear()

    def apply(self, plan: StepPlan) -> None:
        """Rows leave and enter; one that was preempted brings what it had generated."""
        if self._matchers:
            for row in plan.removed.tolist():
                self._matchers.pop(row, None)
        for added in plan.added:
            if added.params.structured_outputs is not None:
                self._matchers[added.row] = self._start(added, added.params.structured_outputs)

    def _start(self, added: Addition, asked: StructuredOutputsParams) -> Matcher:
        matcher = self._compile(asked).start()
        for token_id in added.token_ids[added.num_prompt_tokens :].tolist():
            assert matcher.accept(token_id), f"{added.request_id} generated what its grammar refuses"
        return matcher

    def masks(self, plan: StepPlan) -> Constrained | None:
        """What may come next in each constrained row that samples; None where there is none."""
        if not self._matchers:
            return None
        sampling = plan.rows[plan.samples].tolist()
        found = [(line, row) for line, row in enumerate(sampling) if row in self._matchers]
        if not found:
            return None
        lines, rows = np.array(found, np.int64).T
        matchers = tuple([self._matchers[row] for _, row in found])
        bits = np.empty((len(found), self._words), np.int32)
        for row, matcher in zip(bits, matchers, strict=True):
            _fill(matcher, row)
        return Constrained(lines, rows, bits, matchers)


def _fill(matcher: Matcher, row: Ints) -> None:
    try:
        matcher.fill(row)
    except RuntimeError:  # a limit of the backend; its own request ends with it, and no other
        logger.exception("a grammar gave up; its request ends with finish_reason 'error'")
        row.fill(-1)


def accept(constrained: Constrained | None, token_ids: Ints) -> tuple[Failure, ...]:
    """The step's tokens [m] are known; gives the rows whose token the grammar refuses: they cannot go on.

    A token is refused where other options of the request left none that the grammar allows.
    """
    if constrained is None:
        return ()
    drawn = zip(
        constrained.matchers, constrained.rows.tolist(), token_ids[constrained.lines].tolist(), strict=True
    )
    refused = [row for matcher, row, token_id in drawn if not matcher.accept(token_id)]
    return tuple([Failure(row, _NO_WAY_ON) for row in refused])
