"""Plays a recorded run again: the same arrivals, aborts and tokens, through the real scheduler and cache.

Nothing is computed: a step is answered with the tokens that were recorded. With the same settings every
decision comes out the same; with others one sees what they would have decided. A budget that was set by hand
holds unless another is asked for.

The recording says in which order the scheduler was called, which is how the replay calls it::

    request arrived -> add      step planned -> plan      step committed -> commit      step failed -> fail
    request finished, by an abort -> abort                blocks changed, by a reset -> forget the cache
    queue reordered -> reorder                            budget changed -> set the budget
    request ready -> wake, its grammar is there           adapter pinned or removed -> likewise

A recording does not say what was in the prefix cache before it: begin it with the engine, or right after
`reset_prefix_cache`. Nor does it hold a scheduling policy that is an object of somebody's own: hand it over.
Of LoRA adapters it has the names, which are enough; `sim/adapters.py` says what is missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.cache.hashing import HashAlgorithm, hash_function
from workbench.cache.kv_events import CACHE_RESET
from workbench.cache.manager import CacheManager, KVGroup
from workbench.cache.pool import BlockPool
from workbench.engine.books import Limits
from workbench.engine.clock import Clock
from workbench.engine.events import (
    AdapterPinned,
    AdapterRemoved,
    BlocksChanged,
    BudgetChanged,
    Emitter,
    EngineStarted,
    Event,
    QueueReordered,
    RequestAdmitted,
    RequestArrived,
    RequestFinished,
    RequestPreempted,
    RequestReady,
    StepCommitted,
    StepFailed,
    StepPlanned,
)
from workbench.engine.policies import POLICIES, Policy, policy_named
from workbench.engine.request import Request, State
from workbench.engine.result import Failure, Forced, StepResult, accepted_by
from workbench.engine.scheduler import Scheduler
from workbench.errors import check_names
from workbench.sim.adapters import NamedAdapters, read_adapters
from workbench.sim.redrafting import Redrafting
from workbench.sim.scripts import Recorded, Script, scripts_of
from workbench.trace import Trace


@dataclass(frozen=True, slots=True)
class Settings:
    """What the scheduler and the cache run with, by the names of `llm.config`."""

    num_blocks: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    kv_windows: Sequence[int | None] = (None,)  # of each KV group; None: all earlier tokens are attended to
    enable_prefix_caching: bool = True
    prefix_caching_hash_algo: HashAlgorithm = "sha256"
    long_prefill_token_threshold: int = 0
    scheduling_policy: str | Policy = "fcfs"
    max_loras: int = 1  # slots for adapters, where there are any


_NAMES = tuple(f.name for f in dataclasses.fields(Settings))
_NEEDED = tuple(f.name for f in dataclasses.fields(Settings) if f.default is dataclasses.MISSING)


def replay(trace: Trace, **changes: Any) -> Trace:
    """The trace of the same requests under the recorded settings, but for `changes`.

    Args:
        trace: recorded from the first step of the requests in it: of `record()`, or loaded from the folder
            of a `record(path)`.
        changes: other values of `Settings`: `max_num_batched_tokens=256`, `scheduling_policy="priority"` ...

    Raises:
        TypeError: an unknown setting.
        ValueError: the trace holds no events, begins in mid-run, was made under a policy that is not handed
            over, or the settings cannot hold its requests, or not beside the adapters that were pinned.
    """
    recording = trace.recording()
    events = recording.events
    started = [event for event in events if isinstance(event, EngineStarted)]
    settings = _settings(started[-1].config if started else {}, changes)
    _check_begin(events, recording.dropped_steps)
    scripts = scripts_of(events)
    _check_room(settings, scripts)
    adapters = read_adapters(events, settings.max_loras)
    player = _Player(settings, scripts, _depth(events), "max_num_batched_tokens" not in changes, adapters)
    player.play(events)
    return player.trace


def _settings(config: dict[str, object], changes: dict[str, Any]) -> Settings:
    check_names("replay", changes, _NAMES)
    known: dict[str, Any] = {name: config[name] for name in _NAMES if name in config} | changes
    if missing := [name for name in _NEEDED if name not in known]:
        raise ValueError(f"the trace does not say {missing[0]}: pass {missing[0]}=... to replay")
    if "scheduling_policy" not in changes and known.get("scheduling_policy", "fcfs") not in POLICIES:
        raise ValueError(
            f"the engine had a scheduling policy of its own, {known['scheduling_policy']}, and a trace holds"
            " no objects: pass scheduling_policy=... to replay, such an object or a name"
        )
    return Settings(**known)


def _check_begin(events: Sequence[Event], dropped_steps: int) -> None:
    """A request that ran before has tokens and blocks nobody recorded."""
    if dropped_steps:
        raise ValueError(
            f"the trace has let {dropped_steps} older steps go: replay one of `with llm.trace.record() as t`"
        )
    first = next((event.plan.index for event in events if isinstance(event, StepPlanned)), 0)
    for event in events:
        if isinstance(event, RequestAdmitted) and event.step < first:
            raise ValueError(
                f"request {event.request_id} ran before the recording began: record while nobody runs yet"
            )


def _check_room(settings: Settings, scripts: Sequence[Script]) -> None:
    groups = len(settings.kv_windows)
    for script in scripts:
        length = len(script.arrived.prompt_token_ids) + script.arrived.max_tokens
        blocks = -(-length // settings.block_size) * groups
        if length > settings.max_model_len:
            raise ValueError(
                f"request {script.arrived.request_id} may have {length} tokens, max_model_len is"
                f" {settings.max_model_len}: raise it"
            )
        if blocks > settings.num_blocks:
            raise ValueError(
                f"request {script.arrived.request_id} may need {blocks} blocks, num_blocks is"
                f" {settings.num_blocks}: raise it"
            )


def _depth(events: Sequence[Event]) -> int:
    """The most steps that were in flight at once, at least 1."""
    flying, most = 0, 1
    for event in events:
        if isinstance(event, StepPlanned):
            flying += 1
            most = max(most, flying)
        elif isinstance(event, StepCommitted):
            flying -= 1
        elif isinstance(event, StepFailed):
            flying = 0  # those behind it go with it
    return most


# --- playing --------------------------------------------------------------------------------------------


class _Player:
    """Calls a scheduler in the order in which the recorded one was called."""

    def __init__(
        self,
        settings: Settings,
        scripts: Sequence[Script],
        depth: int,
        same_budget: bool,
        adapters: NamedAdapters | None,
    ) -> None:
        self._now = 0.0
        self._scripts = iter(scripts)
        self._script_of: dict[Request, Script] = {}
        self._latest: dict[str, Request] = {}
        self._depth = depth
        self._same_budget = same_budget  # the one recorded: what was set by hand counts too
        self._ahead = False  # the next plan has been made already
        self._settings = settings
        self._adapters = adapters
        self._emit = Emitter()
        self.trace = Trace(None)
        self._emit.add(self.trace.observer)
        drafts = Redrafting(lambda request, length: self._script_of[request].drafts.get(length, []))
        self.scheduler = _scheduler(settings, lambda: self._now, self._emit, drafts, adapters)

    def play(self, events: Sequence[Event]) -> None:
        for place, event in enumerate(events):
            self._now = event.at
            match event:
                case EngineStarted():
                    self._start(event)
                case RequestArrived():
                    self._arrive()
                case RequestReady():
                    self._make_ready(self._latest[event.request_id])
                case RequestPreempted() if self._running(event.request_id) and not self._ahead:
                    # A plan that gave nobody a token leaves no other trace.
                    self._ahead = self._plan()
                case StepPlanned():
                    if not self._ahead:
                        self._plan()
                    self._ahead = False
                case StepCommitted():
                    self._commit(event)
                case StepFailed():
                    self._fail(event, events[place + 1 :])
                case RequestFinished(reason="abort"):
                    self.scheduler.abort([self._latest[event.request_id]])
                case QueueReordered():
                    self._reorder(event)
                case BudgetChanged() if self._same_budget:
                    self.scheduler.set_budget(event.budget)
                case AdapterPinned() | AdapterRemoved() if self._adapters is not None:
                    self._change(event, self._adapters)
                case BlocksChanged() if any(change.reason == CACHE_RESET for change in event.changes):
                    self.scheduler.forget_prefixes()
                case _:
                    pass  # what follows from the calls above
        self._finish()

    def _start(self, event: EngineStarted) -> None:
        changed = {name: getattr(self._settings, name) for name in _NAMES}
        if not isinstance(changed["scheduling_policy"], str):
            changed["scheduling_policy"] = repr(changed["scheduling_policy"])
        changed["num_kv_groups"] = len(self._settings.kv_windows)
        self._emit(EngineStarted(event.at, event.config | changed))

    def _arrive(self) -> None:
        script = next(self._scripts)
        adapter = self._adapters.number_of(script.arrived.adapter) if self._adapters else None
        request = script.request(self.scheduler, self._now, adapter)
        self._script_of[request] = script
        self._latest[request.request_id] = request
        self.scheduler.add(request)

    def _change(self, event: AdapterPinned | AdapterRemoved, adapters: NamedAdapters) -> None:
        """Nobody used an adapter that was removed; under other settings somebody may, who keeps it."""
        number = adapters.number_of(event.adapter)
        assert number is not None, "an adapter without a name was pinned or removed"
        slot = adapters.slots.slot_of(number)
        if isinstance(event, AdapterPinned):
            adapters.pin(number)
        else:
            adapters.remove(number, used=self.scheduler.users_of(number) > 0)
        self._emit(dataclasses.replace(event, slot=slot))

    def _reorder(self, event: QueueReordered) -> None:
        """Of those who were moved, the ones that wait under these settings too."""
        moved = [self._latest[name] for name in event.request_ids]
        self.scheduler.reorder([request for request in moved if request.state is State.WAITING])

    def _make_ready(self, request: Request) -> None:
        if isinstance(request.need, Recorded):
            request.need.ready = True
        self.scheduler.wake()

    def _running(self, request_id: str) -> bool:
        return self._latest[request_id].state is State.RUNNING

    def _plan(self) -> bool:
        while len(self.scheduler.flights) >= self._depth:  # other settings make other steps
            self._commit(None)
        return self._planned()

    def _planned(self) -> bool:
        if self._adapters is not None:
            self._adapters.check_room(self.scheduler.waiting)
        return self.scheduler.plan() is not None

    def _commit(self, recorded: StepCommitted | None) -> None:
        if not self.scheduler.flights:
            return
        flight = self.scheduler.flights[0]
        plan = flight.plan
        requests = dict(zip(flight.rows.tolist(), flight.requests, strict=True))
        rows, positions, _ = plan.yields
        asked = [
            (row, self._script_of[requests[row]], position - requests[row].num_prompt_tokens)
            for row, position in zip(rows.tolist(), positions.tolist(), strict=True)
        ]
        tokens = np.array([script.token_at(place) for _, script, place in asked], np.int32)
        whys = [script.failure_at(place) for _, script, place in asked]
        accepted = accepted_by(
            plan, tokens, np.flatnonzero([why is not None for why in whys]).astype(np.int32)
        )
        first = asked[: len(rows) - plan.num_drafts]
        failed = [Failure(row, why) for (row, _, _), why in zip(first, whys, strict=False) if why is not None]
        forced = [] if len(self.scheduler.flights) > 1 else _follows(first, positions.tolist())
        times = (self._now, self._now, 0.0)
        if recorded is not None:
            times = (recorded.result.launch_s, recorded.result.collect_s, recorded.result.device_s)
        self.scheduler.commit(
            StepResult(
                plan.index, rows[: len(first)], tokens, None, *times,
                failed=tuple(failed), forced=tuple(forced), accepted=accepted,
            )
        )  # fmt: skip

    def _fail(self, event: StepFailed, later: Sequence[Event]) -> None:
        if not self.scheduler.flights:
            return
        if _ended(later) - set(event.request_ids):  # not only those of the step: the engine was lost
            self.scheduler.end_all(event.error)
        else:
            self.scheduler.fail(event.error)
        self._ahead = False

    def _finish(self) -> None:
        """What other settings have left to do; and, of a run that was cut off, nothing."""
        while self.scheduler.has_work and all(s.finished for s in self._script_of.values()):
            if not self._plan_within():
                self._commit(None)

    def _plan_within(self) -> bool:
        return len(self.scheduler.flights) < self._depth and self._planned()


def _follows(asked: Sequence[tuple[int, Script, int]], positions: Sequence[int]) -> list[Forced]:
    """What came unsampled behind the tokens that are due."""
    forced = []
    for (row, script, place), position in zip(asked, positions, strict=False):
        if count := script.follows.get(place + 1):
            token_ids = script.token_ids[place + 1 : place + 1 + count]
            forced.append(Forced(row, position + 1, np.array(token_ids, np.int32)))
    return forced


def _ended(later: Sequence[Event]) -> set[str]:
    """Who ended with the failure that these events follow."""
    ended = set()
    for event in later:
        if isinstance(event, RequestFinished) and event.reason == "error":
            ended.add(event.request_id)
        elif not isinstance(event, RequestPreempted | BlocksChanged):
            break
    return ended


def _scheduler(
    s: Settings, clock: Clock, emit: Emitter, drafts: Redrafting, adapters: NamedAdapters | None
) -> Scheduler:
    digest = hash_function(s.prefix_caching_hash_algo)
    groups = tuple(KVGroup((layer,), window) for layer, window in enumerate(s.kv_windows))
    pool = BlockPool(s.num_blocks)
    cache = CacheManager(pool, groups, s.block_size, digest, caching=s.enable_prefix_caching)
    limits = Limits(s.max_num_batched_tokens, s.max_num_seqs, s.max_model_len, s.long_prefill_token_threshold)
    return Scheduler(limits, cache, policy_named(s.scheduling_policy), clock, emit, drafts, adapters)
