"""A request as the scheduler sees it: tokens, limits, state. Knows neither text nor tensors."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

import numpy as np

from workbench.cache.manager import BlockTables
from workbench.engine.events import FinishReason
from workbench.engine.plan import Ints
from workbench.engine.result import Floats, LogprobColumns, Scores
from workbench.params import SamplingParams

# Looks at the tokens a request has so far (int32, prompt excluded) and says why it has to stop, or None.
# This is how stop strings reach an engine that knows no text.
StopCheck = Callable[[Ints], str | None]


class Need(Protocol):
    """What a request cannot run without, made in another thread: a compiled grammar, say."""

    @property
    def ready(self) -> bool:
        """It is there, or there will be none."""
        ...

    @property
    def failure(self) -> str | None:
        """Why there is none; its requests end with that."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when it is ready, or after so many seconds."""
        ...


class State(Enum):
    NEW = auto()  # not queued yet
    WAITING = auto()  # in the queue, holds nothing
    RUNNING = auto()  # has a batch row and blocks
    FINISHED = auto()


@dataclass(slots=True)
class Times:
    """Clock readings in seconds; None until it happened."""

    queued: float
    scheduled: float | None = None  # first admitted
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: a prompt and what is generated from it. With n > 1 each child is a request."""

    request_id: str
    prompt_token_ids: Ints  # [num_prompt_tokens]
    params: SamplingParams
    max_length: int  # tokens, prompt included, at which it ends with "length"
    seed: int
    eos_token_ids: tuple[int, ...]  # () with ignore_eos
    times: Times
    tables: BlockTables
    priority: int = 0  # smaller is more urgent
    adapter: int | None = None  # the engine's number of its LoRA adapter; None: the base model
    arrival: int = 0  # 0, 1, 2 ... in the order of arrival
    stop_check: StopCheck | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  # tokens of each
    score_from: int = 0  # first prompt token whose logprobs it wants; 0: it wants none
    streams: bool = False  # the listener wants to hear of every token, not only of the end
    listener: Callable[[Request], None] | None = None
    need: Need | None = None  # until it is there the request stays in the queue; held as long as it is open

    state: State = State.NEW
    row: int = -1  # its batch row while running
    admitted_at: int = 0  # index of the plan that admitted it last
    adapter_slot: int | None = None  # of its adapter, while it runs
    passed_at: int | None = None  # the plan in which others first overtook it, for its adapter had no slot
    token_ids: Ints = field(default_factory=lambda: np.empty(0, np.int32))  # all of them, while not running
    stop_ids: frozenset[int] = frozenset()  # EOS and stop_token_ids
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[tuple[LogprobColumns, int]] = field(default_factory=list)  # a columns' line a token
    whole_logprobs: list[Floats] = field(default_factory=list)  # [vocab] a token, where it asks for that
    scores: list[Scores] = field(default_factory=list)  # of its prompt, chunk after chunk
    num_scored: int = 0  # leading prompt tokens of which all that is wanted is known
    num_cached_tokens: int = 0  # found when it was first admitted
    num_forgone: int = 0  # cached beyond its last hit, and computed all the same: its prompt is scored
    num_preemptions: int = 0
    num_reached: int = 0  # tokens computed before its last preemption
    num_recomputed: int = 0  # tokens computed again after preemptions
    num_overshoot: int = 0  # tokens computed and dropped
    num_accepted: int = 0  # drafts that became output
    num_rejected: int = 0  # drafts that did not

    def __post_init__(self) -> None:
        self.token_ids = self.prompt_token_ids
        self.tables.name = self.request_id
        self.stop_ids = frozenset(self.eos_token_ids) | frozenset(self.params.stop_token_ids or ())

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, {self.state.name.lower()}, {self.num_prompt_tokens} prompt tokens)"
        )

    def copy(self) -> Request:
        """The same request, to plan with; its tokens and what it has been told are shared."""
        other = copy(self)
        other.times, other.tables, other.scores = copy(self.times), self.tables.copy(), list(self.scores)
        return other

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def scoring(self) -> bool:
        """Whether logprobs of its prompt are still to come."""
        return 0 < self.num_scored < self.num_prompt_tokens

    @property
    def finished(self) -> bool:
        return self.state is State.FINISHED

    @property
    def watched(self) -> bool:
        """Whether each of its tokens has to be looked at one by one."""
        return self.streams or self.stop_check is not None or self.params.wants_logprobs

    def score_prompt(self, first: int) -> None:
        """Logprobs are wanted of its prompt from token `first` on, 1 at the least."""
        assert first > 0, "nothing predicts a prompt's first token"
        self.score_from = self.num_scored = first

    def keep_logprobs(self, columns: LogprobColumns, line: int) -> None:
        """Of its newest token; of the vocabulary its own line alone, for the others may be large."""
        if self.params.logprobs == -1:
            assert columns.whole is not None, "the vocabulary was asked for and the runner did not give it"
            place = int(np.searchsorted(columns.whole.lines, line))
            self.whole_logprobs.append(columns.whole.logprobs[place].copy())
        self.logprobs.append((columns.without_whole, line))

    def token_bytes(self, begin: int, end: int) -> bytes:
        """Tokens [begin, end) as int32 bytes, while it is not running."""
        return self.token_ids[begin:end].tobytes()
