"""The matchers of a batch's constrained rows: masks for the step in hand, tokens taken when they are known.

The masks of a step are filled while the device computes it; by then the tokens of the step before have been
taken. Where a mask leaves one token only, what has to come behind it is told with it. Knows rows and
grammars; nothing of backends or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from workbench.engine.plan import Addition, Ints, StepPlan
from workbench.engine.result import Failure, Floats, Forced, accepted_by
from workbench.params import StructuredOutputsParams
from workbench.runtime.batch import Longs
from workbench.structured.grammar import MOST_FORCED, CompiledGrammar, Matcher

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


class Held(NamedTuple):
    """One row that samples under a constraint."""

    row: int
    matcher: Matcher
    line: int  # of the tokens sampled: its first
    number: int = -1  # which of the plan's drafts' lines; -1: none of its tokens are drafts
    extra: int = 0  # the line of what is sampled behind its first draft
    walked: int = 0  # leading drafts that the grammar allows; masks go no further


@dataclass(slots=True)
class Constrained:
    """The rows of a step that sample under a constraint."""

    plan: StepPlan
    lines: Longs  # [k]; which of the tokens that are sampled
    rows: Longs  # [k]; batch rows
    bits: Ints  # [k, words]; bit i % 32 of word i // 32 is set: token i may come
    held: tuple[Held, ...]
    masked: Floats  # [m + e]; share of the vocabulary ruled out, NaN in rows without a constraint
    forced: tuple[Forced, ...]  # what comes behind a token that has no alternative
    refused: tuple[Failure, ...] | None = None  # None: the tokens have not been taken yet
    accepted: Ints | None = None  # [s]; of the plan's drafts, those that stand

    def take(self, token_ids: Ints, lost: Ints | None = None) -> tuple[Failure, ...]:
        """The step's tokens [m + e] are known: whoever comes first has the matchers take those that stand.

        Gives the rows whose token the grammar refuses, which cannot go on: other options of the request left
        none that it allows. Behind a draft, that is left to the next step, whose first token it will be.
        """
        if self.refused is None:
            self.accepted = accepted_by(self.plan, token_ids, lost)
            refused = [held.row for held in self.held if not self._take(held, token_ids)]
            self.refused = tuple([Failure(row, _NO_WAY_ON) for row in refused])
        return self.refused

    def _take(self, held: Held, token_ids: Ints) -> bool:
        if not held.matcher.accept(int(token_ids[held.line])):
            return False
        if self.accepted is not None and held.number >= 0:
            most = min(int(self.accepted[held.number]), held.walked)
            behind = token_ids[held.extra : held.extra + most].tolist()
            taken = next((i for i, token_id in enumerate(behind) if not held.matcher.accept(token_id)), most)
            self.accepted[held.number] = taken
        return True


class Outcome(NamedTuple):
    """What a result says of drafts, and of constrained rows."""

    refused: tuple[Failure, ...] = ()
    masked: Floats | None = None
    forced: tuple[Forced, ...] = ()
    accepted: Ints | None = None


def outcome(
    plan: StepPlan, constrained: Constrained | None, token_ids: Ints, lost: Ints | None = None
) -> Outcome:
    """Of a step's tokens [m + e], which are known now; `lost`: lines that could not be sampled."""
    if constrained is None:
        return Outcome(accepted=accepted_by(plan, token_ids, lost))
    refused = constrained.take(token_ids, lost)
    return Outcome(refused, constrained.masked, constrained.forced, constrained.accepted)


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
        yields, heads = plan.yields, int(plan.samples.sum())
        mine = [(line, row) for line, row in enumerate(yields.rows.tolist()) if row in self._rows]
        if not mine:
            return None
        lines, rows = np.array(mine, np.int64).T
        place_of = {line: place for place, line in enumerate(lines.tolist())}
        bits = np.empty((len(mine), -(-self._vocab_size // 32)), np.int32)
        drafts = _drafts_of(plan, heads)
        held = []
        for line, row in mine[: int((lines < heads).sum())]:
            state = self._rows[row]
            _catch_up(state, int(yields.positions[line]))
            _fill(state.matcher, bits[place_of[line]])
            held.append(Held(row, state.matcher, line))
            if row in drafts:
                number, extra, token_ids = drafts[row]
                place = place_of[extra]
                walked = _walk(state.matcher, token_ids, bits[place : place + len(token_ids)])
                held[-1] = Held(row, state.matcher, line, number, extra, walked)
        allowed = np.bitwise_count(bits.view(np.uint32)).sum(1)
        masked = np.full(len(yields.rows), np.nan, np.float32)
        masked[lines] = 1.0 - np.minimum(allowed / self._vocab_size, 1.0)
        forced: tuple[Forced, ...] = ()
        if self._least_forced is not None and not plan.logprobs:  # an observer may want to see the logits
            ends = {row: int(yields.positions[line]) for line, row in mine if line < heads}
            sole = [each.row for each in held if each.number < 0 and allowed[place_of[each.line]] == 1]
            forced = self._force(sole, ends, self._least_forced)
        return Constrained(plan, lines, rows, bits, tuple(held), masked, forced)

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


class _Drafts(NamedTuple):
    number: int  # which of the plan's drafts' lines
    extra: int  # line of what is sampled behind the first
    token_ids: list[int]


def _drafts_of(plan: StepPlan, heads: int) -> dict[int, _Drafts]:
    """By batch row; `heads`: tokens that are sampled behind none of them."""
    if plan.drafts is None:
        return {}
    lines, counts, token_ids = plan.drafts
    found, begin = {}, 0
    for number, (row, count) in enumerate(zip(plan.rows[lines].tolist(), counts.tolist(), strict=True)):
        found[row] = _Drafts(number, heads + begin, token_ids[begin : begin + count].tolist())
        begin += count
    return found


def _walk(matcher: Matcher, token_ids: Sequence[int], bits: Ints) -> int:
    """Masks behind each draft, as far as the grammar allows them; what lies behind that never counts."""
    bits.fill(-1)
    walked = 0
    for token_id, row in zip(token_ids[:MOST_FORCED], bits, strict=False):
        if not matcher.accept(token_id):
            break
        _fill(matcher, row)
        walked += 1
    matcher.rollback(walked)
    return walked


def _fill(matcher: Matcher, row: Ints) -> None:
    try:
        matcher.fill(row)
    except RuntimeError:  # a limit of the backend; its own request ends with it, and no other
        logger.exception("a grammar gave up; its request ends with finish_reason 'error'")
        row.fill(-1)
