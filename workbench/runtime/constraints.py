"""The matchers of a batch's constrained rows: masks for the step in hand, tokens taken when they are known.

The masks of a step are filled while the device computes it; by then the tokens of the step before have been
taken. Where a mask leaves one token only, what has to come behind it is told with it. Knows rows and
grammars; nothing of backends or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from workbench.engine.plan import Addition, Ints, StepPlan
from workbench.engine.result import Failure, Floats, Forced
from workbench.params import StructuredOutputsParams
from workbench.runtime.batch import Longs
from workbench.structured.grammar import CompiledGrammar, Matcher

logger = logging.getLogger(__name__)

_NO_WAY_ON = "its other options leave no token that its grammar allows"

Compile = Callable[[StructuredOutputsParams], CompiledGrammar]


@dataclass(slots=True)
class Row:
    """One request's way through its grammar."""

    matcher: Matcher
    may_force: bool  # a token without an alternative comes for sure, and nobody asks for its logits
    ahead: list[int] = field(default_factory=list)  # known to follow, and not taken by the matcher yet
    length: int = 0  # of the request, ahead of those


@dataclass(slots=True)
class Constrained:
    """The rows of a step that sample under a constraint."""

    lines: Longs  # [k]; which of the rows that sample
    rows: Longs  # [k]; batch rows
    bits: Ints  # [k, words]; bit i % 32 of word i // 32 is set: token i may come
    matchers: tuple[Matcher, ...]
    masked: Floats  # [m]; share of the vocabulary ruled out, NaN in rows without a constraint
    forced: tuple[Forced, ...]  # what comes behind a token that has no alternative
    refused: tuple[Failure, ...] | None = None  # None: the tokens have not been taken yet

    def take(self, token_ids: Ints) -> tuple[Failure, ...]:
        """The step's tokens [m] are known: whoever comes first has the matchers take them.

        Gives the rows whose token the grammar refuses, which cannot go on: other options of the request left
        none that it allows.
        """
        if self.refused is None:
            drawn = zip(self.matchers, self.rows.tolist(), token_ids[self.lines].tolist(), strict=True)
            refused = [row for matcher, row, token_id in drawn if not matcher.accept(token_id)]
            self.refused = tuple([Failure(row, _NO_WAY_ON) for row in refused])
        return self.refused


class Outcome(NamedTuple):
    """What a result says of constrained rows."""

    refused: tuple[Failure, ...] = ()
    masked: Floats | None = None
    forced: tuple[Forced, ...] = ()


def outcome(constrained: Constrained | None, token_ids: Ints) -> Outcome:
    """Of a step's tokens [m], which are known now."""
    if constrained is None:
        return Outcome()
    return Outcome(constrained.take(token_ids), constrained.masked, constrained.forced)


class Constraints:
    """A matcher for each row that asks for structured output."""

    def __init__(self, compile_grammar: Compile, vocab_size: int, least_forced: int | None) -> None:
        """`compile_grammar` finds what was compiled while the request waited.

        Args:
            least_forced: so many tokens without an alternative, behind the one that is sampled, are worth a
                step that computes them together; None: a step is planned before that is known.
        """
        self._compile = compile_grammar
        self._vocab_size = vocab_size
        self._least_forced = least_forced
        self._rows: dict[int, Row] = {}  # by batch row

    def clear(self) -> None:
        self._rows.clear()

    def apply(self, plan: StepPlan) -> None:
        """Rows leave and enter; one that was preempted brings what it had generated."""
        if self._rows:
            for row in plan.removed.tolist():
                self._rows.pop(row, None)
        for added in plan.added:
            if added.params.structured_outputs is not None:
                matcher = self._start(added, added.params.structured_outputs)
                may_force = not (added.params.adjusts_logits or added.params.wants_logprobs)
                self._rows[added.row] = Row(matcher, may_force)

    def _start(self, added: Addition, asked: StructuredOutputsParams) -> Matcher:
        matcher = self._compile(asked).start()
        for token_id in added.token_ids[added.num_prompt_tokens :].tolist():
            assert matcher.accept(token_id), f"{added.request_id} generated what its grammar refuses"
        return matcher

    def masks(self, plan: StepPlan) -> Constrained | None:
        """What may come next in each constrained row that samples; None where there is none.

        The matchers have taken all tokens sampled before.
        """
        if not self._rows:
            return None
        sampling = plan.rows[plan.samples].tolist()
        found = [(line, row) for line, row in enumerate(sampling) if row in self._rows]
        if not found:
            return None
        lines, rows = np.array(found, np.int64).T
        lengths = (plan.starts + plan.counts)[plan.samples][lines].tolist()
        states = [self._rows[row] for _, row in found]
        bits = np.empty((len(found), -(-self._vocab_size // 32)), np.int32)
        for line, state, length in zip(bits, states, lengths, strict=True):
            _catch_up(state, length)
            _fill(state.matcher, line)
        allowed = np.bitwise_count(bits.view(np.uint32)).sum(1)
        masked = np.full(len(sampling), np.nan, np.float32)
        masked[lines] = 1.0 - np.minimum(allowed / self._vocab_size, 1.0)
        forced: tuple[Forced, ...] = ()
        if self._least_forced is not None and not plan.logprobs:  # an observer may want to see the logits
            ends = dict(zip(rows.tolist(), lengths, strict=True))
            forced = self._force(rows[allowed == 1].tolist(), ends, self._least_forced)
        return Constrained(lines, rows, bits, tuple([state.matcher for state in states]), masked, forced)

    def _force(self, rows: list[int], lengths: dict[int, int], least: int) -> tuple[Forced, ...]:
        """What has to come behind the next token of rows that leave no choice of it."""
        found = []
        for row in rows:
            state = self._rows[row]
            ahead = state.matcher.forced()[1:] if state.may_force else []
            if len(ahead) >= least:
                state.ahead, state.length = ahead, lengths[row] + 1
                found.append(Forced(row, state.length, np.array(ahead, np.int32)))
        return tuple(found)


def _catch_up(state: Row, length: int) -> None:
    """The request went on by tokens that had no alternative, as many of them as it took."""
    for token_id in state.ahead[: max(0, length - state.length)]:
        assert state.matcher.accept(token_id), "a grammar refuses what it forced"
    state.ahead = []


def _fill(matcher: Matcher, row: Ints) -> None:
    try:
        matcher.fill(row)
    except RuntimeError:  # a limit of the backend; its own request ends with it, and no other
        logger.exception("a grammar gave up; its request ends with finish_reason 'error'")
        row.fill(-1)
