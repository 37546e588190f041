"""Between the scheduler and a drafter: who drafts, how much, and what becomes of it. Knows no model."""

from __future__ import annotations

from copy import copy, deepcopy

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import Ints, StepPlan
from workbench.engine.request import Request
from workbench.engine.result import StepResult
from workbench.engine.running import Longs, Running
from workbench.speculate.config import Room
from workbench.speculate.drafter import Ask, Drafter
from workbench.speculate.pace import HOLDS, Pace
from workbench.speculate.relay import Relay


class Speculator:
    """One drafter for all requests of an engine."""

    def __init__(self, drafter: Drafter, room: Room, pace: Pace | None) -> None:
        """`pace`: says when fewer are better; None: never."""
        self._drafter = drafter
        self._relay = drafter if isinstance(drafter, Relay) else None  # where the runner drafts
        self._room = room
        self._pace = pace
        self._wanted: Longs = np.zeros(0, np.int64)  # by batch row; drafts at most
        self._anybody = False  # whether anybody is to draft
        self._holds = 0  # steps for which that holds
        self._gone = 0  # steps since it was decided
        self._last: StepResult | None = None  # of the step before, where it was one of decodes
        self._lines = 0  # its requests
        self._drafted = False  # and whether it verified drafts
        self._heard: list[tuple[StepPlan, StepResult, Ints | None]] = []  # and not thought about yet

    def copy(self) -> Speculator:
        """It shares the drafter: whoever is asked twice, or enters a free row twice, says the same."""
        other = copy(self)
        other._pace, other._heard = deepcopy(self._pace), list(self._heard)
        return other

    def enter(self, request: Request) -> None:
        self._drafter.enter(request.row, request.token_ids, request.tables.root)
        if self._pace is not None:
            self._think()  # what was heard is of others' rows
            self._pace.enter(request.row)
        self._holds = 0

    def leave(self, request: Request) -> None:
        self._drafter.leave(request.row, request.token_ids, request.num_prompt_tokens)

    def waits(self, running: Running) -> bool:
        if not self._holds:
            self._decide(running)
        return self._anybody and bool(self._wanted[running.row].any())

    def _lengths(self, running: Running) -> Longs:
        """[n]; drafts that are wanted of each."""
        if not self._holds:
            self._decide(running)
        wanted: Longs = self._wanted[running.row]
        return wanted

    def _decide(self, running: Running) -> None:
        """Who drafts how much, until somebody enters or, with a pace, steps have gone by."""
        self._holds = HOLDS
        wanted = np.zeros(running.max_rows, np.int64)
        if self._pace is None:
            wanted[running.row] = self._room.each
        else:
            self._think()
            wanted[running.row] = self._pace.wanted(running.row, self._gone)
            self._gone = 0
            self._holds = self._pace.holds
        self._wanted, self._anybody = wanted, bool(wanted.any())

    def propose(self, running: Running, most: Longs) -> Proposals | None:
        most = self._in_room(np.minimum(self._lengths(running), most))
        places = most.nonzero()[0]
        if not len(places):
            return None
        lengths = running.length[places]
        asked = self._drafter.propose(Ask(running.row[places], lengths, most[places], running.tokens))
        if not len(asked.token_ids):
            return None
        counts = np.zeros(running.count, np.int64)
        counts[places] = asked.counts
        return Proposals(counts, asked.token_ids)

    def _in_room(self, most: Longs) -> Longs:
        """[n]; no more than a step may hold: of those that come first."""
        if int(most.sum()) <= self._room.all:
            return most
        fitting: Longs = np.clip(self._room.all - (np.cumsum(most) - most), 0, most)
        return fitting

    def asks(self, running: Running) -> Longs | None:
        if self._relay is None or not running.count:
            return None
        most = self._in_room(self._lengths(running))
        return most if most.any() else None

    def committed(self, plan: StepPlan, result: StepResult, accepted: Ints | None) -> None:
        if self._relay is not None:
            self._relay.hear(result.proposed)
        if self._pace is None:
            return
        self._gone += 1
        if self._holds:
            self._holds -= 1
        if plan.drafts is None and not self._anybody and self._holds >= HOLDS:
            return  # what a step costs is looked at shortly before the next decision
        self._heard.append((plan, result, accepted))

    def meanwhile(self, running: Running) -> None:
        self._think()
        if self._pace is None or not self._anybody or self._holds != 1:
            return
        # The step that is computed is the last of what was decided. That all who draft go on may be decided
        # without it, at a time that costs nothing; that somebody ends, and what a trial was worth, may not.
        wanted = self._pace.by_chance(running.row)
        if wanted.any() and (wanted > 0)[self._wanted[running.row] > 0].all():
            self._wanted = np.zeros(running.max_rows, np.int64)
            self._wanted[running.row] = wanted
            self._holds += HOLDS

    def _think(self) -> None:
        """About the steps that were heard of."""
        if self._pace is None:
            return
        for plan, result, accepted in self._heard:
            self._time(self._pace, plan, result)
            if plan.drafts is not None and accepted is not None:
                rows = plan.rows[plan.drafts.lines].astype(np.int64)
                self._pace.verified(rows, plan.drafts.counts.astype(np.int64), accepted.astype(np.int64))
        self._heard.clear()

    def _time(self, pace: Pace, plan: StepPlan, result: StepResult) -> None:
        """From the end of one step of decodes to that of the next, with all that goes on between the two.

        A step that drafts and does not verify, or verifies and drafts no more, is like none that follow; nor
        is one without drafts that could not overlap with the one before.
        """
        lines, drafts, before = len(plan.rows), plan.num_drafts, self._last
        decodes = plan.num_tokens == lines + drafts and bool(plan.samples.all())
        usual = self._relay is None or (plan.asks is None) == (plan.drafts is None)
        usual = usual and (drafts > 0 or not self._drafted)
        follows = before is not None and before.index + 1 == result.index and self._lines >= lines
        if decodes and usual and before is not None and follows:
            pace.took(plan.num_tokens, result.collect_s - before.collect_s, drafts)
        self._last, self._lines, self._drafted = result if decodes else None, lines, drafts > 0
