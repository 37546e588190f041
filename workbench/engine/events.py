"""What the engine decided, as past-tense facts: one event a decision, never one a token or a block.

Events are built only while somebody observes. They are plain data; `at` is the engine's clock in seconds.
A capability that decides something new adds its class here and to `Event`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from workbench.cache.kv_events import KVEvent
    from workbench.engine.plan import Ints, StepPlan
    from workbench.engine.result import StepResult

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class EngineStarted:
    """An engine opened; what follows happened under these settings."""

    at: float
    config: dict[str, object]  # resolved settings: model, device, num_blocks, budget ...


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request was checked and joined the waiting queue."""

    at: float
    request_id: str
    prompt_token_ids: Ints  # [num_prompt_tokens]
    max_tokens: int
    priority: int
    cache_root: bytes  # keeps its blocks apart: a hash of adapter and cache_salt, b"" where there is neither
    aside: bool = False  # it needs what is not there yet, a compiled grammar say
    adapter: str = ""  # name of its LoRA adapter; "" for the base model


@dataclass(frozen=True, slots=True)
class QueueReordered:
    """Somebody moved waiting requests; they traded places, with the priorities that belong to those."""

    at: float
    request_ids: tuple[str, ...]  # those that were moved, in their new order


@dataclass(frozen=True, slots=True)
class BudgetChanged:
    """Somebody set another token budget, for the steps from here on."""

    at: float
    budget: int


@dataclass(frozen=True, slots=True)
class RequestReady:
    """What a request that stood aside needs is there, or there will be none."""

    at: float
    request_id: str


@dataclass(frozen=True, slots=True)
class PrefixLookedUp:
    """A waiting request's prefix was looked up in the cache; it is admitted if there is room for the rest.

    A request that does not read the prefix cache is not looked up, and with no cache nobody is.
    """

    at: float
    step: int  # the plan that is being made
    request_id: str
    num_queried: int  # tokens looked up: prompt and, after a preemption, what it had generated
    num_hit: int  # of them, found: whole blocks, and never the last token


@dataclass(frozen=True, slots=True)
class RequestAdmitted:
    """A waiting request got a batch row, and holds the blocks that its prefix was found in."""

    at: float
    step: int
    request_id: str
    row: int
    num_tokens: int  # prompt and, after a preemption, what it had generated
    num_queried: int  # of them, looked up in the prefix cache: all, or none
    num_cached_tokens: int  # of those, found, not computed again
    num_reached: int  # tokens it had computed before its last preemption; 0 when it is new
    resumed: bool  # it ran before and was preempted
    num_forgone: int = 0  # cached beyond that, and computed all the same: logprobs of the prompt need it


@dataclass(frozen=True, slots=True)
class AdapterLoaded:
    """A LoRA adapter got a slot of the device, for a request that waits for it."""

    at: float
    step: int  # the plan that is being made
    adapter: str  # its name
    slot: int


@dataclass(frozen=True, slots=True)
class AdapterEvicted:
    """A LoRA adapter that nobody runs with gave its slot to another one."""

    at: float
    step: int
    adapter: str
    slot: int


@dataclass(frozen=True, slots=True)
class AdapterPinned:
    """Somebody pinned a LoRA adapter: once it has a slot, it keeps it until it is removed."""

    at: float
    adapter: str
    slot: int | None  # that it has already; None: it has none yet


@dataclass(frozen=True, slots=True)
class AdapterRemoved:
    """Somebody removed a LoRA adapter, which nobody used; one of that name that comes later is another."""

    at: float
    adapter: str
    slot: int | None  # that is free now; None: it had none


@dataclass(frozen=True, slots=True)
class RequestPreempted:
    """Blocks ran out: a request gave its own back and waits again, to be recomputed."""

    at: float
    step: int  # the plan that decided it
    request_id: str
    num_computed_tokens: int  # work given up, unless its blocks are still found later
    in_flight: int  # tokens of steps in flight that are dropped with it


@dataclass(frozen=True, slots=True)
class BlocksChanged:
    """What happened to KV blocks since the event before.

    It comes ahead of its plan's StepPlanned, whose numbers of blocks count it; what happens between two plans
    belongs to the later one.
    """

    at: float
    step: int  # the first plan that finds it so
    block_size: int  # tokens of a block
    changes: tuple[KVEvent, ...]  # in order; each of one or more blocks


@dataclass(frozen=True, slots=True)
class StepPlanned:
    """A plan is complete and about to be launched: who computes which tokens, one line a chunk."""

    at: float
    plan: StepPlan
    request_ids: tuple[str, ...]  # [n]; who holds plan.rows
    running: int
    waiting: int
    blocks_free: int  # includes the cached ones nobody holds
    blocks_held: int
    blocks_cached: int  # findable by their key, held or free
    recomputed: int  # tokens of this step computed before, ahead of a preemption; some may become overshoot
    plan_s: float  # host seconds spent planning


class Followed(NamedTuple):
    """Tokens that a request took unsampled behind its newest one, for its grammar left no choice."""

    request_id: str
    token_ids: Ints  # [f]


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """A step's result was applied to its requests."""

    at: float
    result: StepResult
    request_ids: tuple[str, ...]  # [k]; the requests that took a token, once for each
    taken: Ints  # [k]; line of the result each took
    overshoot: int  # tokens computed for requests that had already ended or been preempted
    commit_s: float  # host seconds spent committing
    followed: tuple[Followed, ...] = ()
    accepted: Ints | None = None  # [s]; drafts that became output, of each line of the plan's

    @property
    def token_ids(self) -> Ints:
        """[k]; the tokens they took."""
        return self.result.token_ids[self.taken]

    @property
    def num_followed(self) -> int:
        """Tokens taken unsampled."""
        return sum(len(each.token_ids) for each in self.followed)


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The runner raised; the step's requests end with "error" and its blocks leave the prefix cache."""

    at: float
    index: int
    request_ids: tuple[str, ...]
    error: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request ended; its blocks are free, the full ones still findable."""

    at: float
    request_id: str
    reason: FinishReason
    stop_reason: int | str | None
    num_output_tokens: int
    num_preemptions: int


Event = (
    EngineStarted
    | RequestArrived
    | QueueReordered
    | BudgetChanged
    | RequestReady
    | PrefixLookedUp
    | RequestAdmitted
    | RequestPreempted
    | AdapterLoaded
    | AdapterEvicted
    | AdapterPinned
    | AdapterRemoved
    | BlocksChanged
    | StepPlanned
    | StepCommitted
    | StepFailed
    | RequestFinished
)
Observer = Callable[[Event], None]


class Emitter:
    """Hands events to observers; false while there are none, so that nobody builds an event in vain.

    An observer cannot change the run: one that raises is set aside with a warning. What it means for whoever
    drives the engine, SystemExit say, waits for `check`, when no book is half written.
    """

    def __init__(self) -> None:
        self._observers: tuple[Observer, ...] = ()  # replaced, never changed in place
        self._lock = threading.RLock()  # they come and go in any thread, and in finalisers
        self._raised: BaseException | None = None
        self._switch: Callable[[bool], object] = _ignore
        self._wanted: list[int] = []
        self.logprobs = 0  # top logprobs that observers want of every token sampled; 0: none

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __call__(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except KeyboardInterrupt as interrupt:  # not its own doing
                self._raised = interrupt
            except BaseException as error:  # noqa: BLE001 - whatever an observer does, the run goes on
                self.remove(observer)
                logger.warning("observer %r raised %r and is set aside", observer, error)
                if not isinstance(error, Exception):
                    self._raised = error

    def check(self) -> None:
        """Raise what an observer raised that was to end more than the observer."""
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised

    def add(self, observer: Observer) -> None:
        with self._lock:
            self._observers = (*self._observers, observer)
            self._switch(True)

    def remove(self, observer: Observer) -> None:
        """It hears no more; one that is not there, because it was set aside say, is left alone."""
        with self._lock:
            left = list(self._observers)
            if observer in left:
                left.remove(observer)
            self._observers = tuple(left)
            self._switch(bool(left))

    def on_switch(self, switch: Callable[[bool], object]) -> None:
        """Who collects what observers will be told hears, now and later, whether there are any."""
        with self._lock:
            self._switch = switch
            switch(bool(self._observers))

    def off_switch(self) -> None:
        """Nobody collects anything any more; who did is let go of."""
        self.on_switch(_ignore)

    @contextmanager
    def wanting_logprobs(self, count: int) -> Iterator[None]:
        """Plans made inside the block ask for the `count` likeliest tokens of every token sampled."""
        with self._lock:
            self._wanted.append(count)
            self.logprobs = max(self._wanted)
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove(count)
                self.logprobs = max(self._wanted, default=0)


def _ignore(on: bool) -> None:
    """Nobody collects anything."""
