"""A runner without a model: the next token depends on every token the runner was really handed.

It keeps a KV store of token ids by block, writes and reads it through the block tables of the plan, and
hashes what it reads. A wrong table, a block reused too early or a stale hit therefore changes tokens.
"""

from __future__ import annotations

import hashlib
from collections import deque
from copy import copy
from itertools import chain

import numpy as np

from workbench.engine.drafting import Proposals
from workbench.engine.plan import StepPlan
from workbench.engine.request import Request
from workbench.engine.result import Failure, Forced, StepResult, accepted_by
from workbench.engine.running import Running

VOCABULARY = 97


NO_ADAPTER = -1
OF_ADAPTER = 1000  # what an adapter's number adds to a token in the KV store, times one more than it


def next_token(tokens: np.ndarray, seed: int = 0, adapter: int = NO_ADAPTER) -> int:
    """A token that depends on every token before it, on the seed and on the adapter."""
    told = (seed + ((adapter + 1) << 40)).to_bytes(8, "little")
    digest = hashlib.blake2b(tokens.astype(np.int32).tobytes() + told, digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


def alone(
    prompt: list[int],
    count: int,
    seed: int = 0,
    stop: frozenset[int] = frozenset(),
    adapter: int = NO_ADAPTER,
) -> list[int]:
    """What a request generates with nobody beside it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(np.array(tokens), seed, adapter))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


class FakeRunner:
    """Runs plans in order; tokens of steps in flight live here only, as they would on a device."""

    def __init__(
        self, num_blocks: int, block_size: int, num_groups: int = 1, windows: tuple = (None,)
    ) -> None:
        self.block_size = block_size
        self.windows = windows
        self.store = np.full((num_groups, (num_blocks + 1), block_size), -1, np.int64)
        self.fail_at: set[int] = set()
        self.failing: dict[int, int] = {}  # request's number -> the token of its output that fails
        self.failed: dict[int, list[Failure]] = {}  # by step
        self.forces = False  # of constrained requests, tokens that follow the one sampled are told with it
        self.reset()

    def reset(self) -> None:
        self.rows: dict[int, dict] = {}
        self.slots: dict[int, int] = {}  # of adapters: which lies in each
        self.tickets: deque = deque()

    def launch(self, plan: StepPlan) -> StepResult:
        assert plan.num_tokens <= plan.budget, "a step exceeds its budget"
        assert len(set(plan.rows.tolist())) == len(plan.rows), "a row stands twice in a plan"
        for row in plan.removed.tolist():
            del self.rows[row]
        for added in plan.added:
            assert added.row not in self.rows, "a row is given away twice"
            tables = [list(blocks) for blocks in added.blocks]
            self.rows[added.row] = {"tokens": added.token_ids.tolist(), "tables": tables, "seed": added.seed}
            self.rows[added.row]["prompt"] = added.num_prompt_tokens
            self.rows[added.row]["slot"] = added.adapter
            self.rows[added.row]["constrained"] = added.params.structured_outputs is not None
        for group, growth in enumerate(plan.grown):
            for row, place, block in zip(growth.rows, growth.places, growth.blocks, strict=True):
                table = self.rows[int(row)]["tables"][group]
                assert place <= len(table), "a block table grows with a gap"
                behind = place * self.block_size - (len(self.rows[int(row)]["tokens"]) - 1)
                forced = self.forces and self.rows[int(row)]["constrained"]
                assert place == len(table) or behind >= 0 or forced, "a block that holds tokens is given back"
                table[place:] = [block]
        self.slots.update(plan.loads)
        if plan.index in self.fail_at:
            raise RuntimeError(f"injected at step {plan.index}")
        drafts = self._take_drafts(plan)
        work = list(
            zip(plan.rows.tolist(), plan.starts.tolist(), plan.counts.tolist(), plan.samples, strict=True)
        )
        for row, start, count, _ in work:  # every write of a step comes before its reads, as in a layer
            self._write(self.rows[row], start, count)
        sampled, forced, behind, verified = [], [], [], {}
        for row, start, count, samples in work:
            if samples and row in drafts:
                own = verified[row] = self._verify(self.rows[row], start + count, drafts[row])
                if self._failing_at(self.rows[row], start + count - len(drafts[row])) == 0:
                    self.failed.setdefault(plan.index, []).append(Failure(row, "no token"))
                sampled.append(own[0])
                behind += own[1:]
            elif samples:
                state = self.rows[row]
                if self.forces and state["constrained"]:  # the request may have taken but a part
                    del state["tokens"][start + count :]
                token = self._read(state, start + count)
                state["tokens"].append(token)
                if len(state["tokens"]) - state["prompt"] == self.failing.get(state["seed"]):
                    self.failed.setdefault(plan.index, []).extend([Failure(row, "no token")] * 2)
                sampled.append(token)
                if self.forces and state["constrained"]:
                    forced.append(Forced(row, start + count + 1, self._follow(state, token % 4)))
        token_ids = np.array(sampled + behind, np.int32)
        accepted = accepted_by(plan, token_ids)
        for number, (row, count) in enumerate(zip(drafts, accepted.tolist() if drafts else [], strict=True)):
            tokens = self.rows[row]["tokens"]
            fails = self._failing_at(self.rows[row], len(tokens) - len(drafts[row]))
            if fails is not None and 0 < fails <= count:  # told when it is the row's first token
                accepted[number] = count = fails - 1
            tokens[len(tokens) - len(drafts[row]) + count :] = [verified[row][count]]
        return StepResult(
            plan.index, plan.rows[plan.samples], token_ids, None, 0.0, 0.0, 0.0,
            forced=tuple(forced), accepted=accepted,
        )  # fmt: skip

    def _failing_at(self, state: dict, length: int) -> int | None:
        """Which of the tokens behind so many is the one that fails; it may not be among them."""
        number = self.failing.get(state["seed"])
        return None if number is None else number - (length + 1 - state["prompt"])

    def _take_drafts(self, plan: StepPlan) -> dict[int, list[int]]:
        """They stand behind the rows' tokens as long as the step computes."""
        taken: dict[int, list[int]] = {}
        if plan.drafts is None:
            return taken
        given = plan.drafts.token_ids.tolist()
        for line, count in zip(plan.drafts.lines.tolist(), plan.drafts.counts.tolist(), strict=True):
            state, end = self.rows[int(plan.rows[line])], int(plan.starts[line] + plan.counts[line])
            del state["tokens"][end - count :]  # rows of a grammar may have more than was taken
            taken[int(plan.rows[line])], given = given[:count], given[count:]
            state["tokens"] += taken[int(plan.rows[line])]
            assert len(state["tokens"]) == end, "drafts do not end where the chunk does"
        assert not given, "there are more drafts than lines have"
        return taken

    def _verify(self, state: dict, end: int, drafts: list[int]) -> list[int]:
        """What the model says behind the row's last known token, and behind each draft."""
        whole, found = state["tokens"], []
        for length in range(end - len(drafts), end + 1):
            state["tokens"] = whole[:length]
            found.append(self._read(state, length))
        state["tokens"] = whole
        return found

    def _follow(self, state: dict, count: int) -> np.ndarray:
        """The next tokens, which nobody has to sample, up to one that is to fail."""
        begin = len(state["tokens"])
        while len(state["tokens"]) < begin + count:
            if len(state["tokens"]) + 1 - state["prompt"] == self.failing.get(state["seed"]):
                break
            state["tokens"].append(
                next_token(np.array(state["tokens"]), state["seed"], self.adapter_of(state))
            )
        return np.array(state["tokens"][begin:], np.int32)

    def adapter_of(self, state: dict) -> int:
        """The adapter that lies in the slot which the row was told to read."""
        return NO_ADAPTER if state["slot"] is None else self.slots[state["slot"]]

    def collect(self, ticket: StepResult) -> StepResult:
        return ticket

    def _write(self, state: dict, start: int, count: int) -> None:
        for position in range(start, start + count):
            block, offset = divmod(position, self.block_size)
            for group, table in enumerate(state["tables"]):
                assert table[block] != 0, "a write into the null block"
                of_adapter = OF_ADAPTER * (self.adapter_of(state) + 1)
                self.store[group, table[block], offset] = state["tokens"][position] + of_adapter

    def _read(self, state: dict, length: int) -> int:
        assert length == len(state["tokens"]), "a sampled position is not the last"
        read = [state["tokens"]]
        for group, (table, window) in enumerate(zip(state["tables"], self.windows, strict=True)):
            first = 0 if window is None else max(0, length - window)
            of_adapter = OF_ADAPTER * (self.adapter_of(state) + 1)
            got = [
                self.store[group, table[p // self.block_size], p % self.block_size] - of_adapter
                for p in range(first, length)
            ]
            assert got == state["tokens"][first:], (
                f"{got} {state} the cache does not hold the request's tokens"
            )
            read.append(got)
        tokens = np.array(read[1] if self.windows[0] is None else read[0])
        return next_token(tokens, state["seed"], self.adapter_of(state))


class FakeSpeculation:
    """Drafts that are right, wrong, or right up to somewhere; it drafts now and then."""

    def __init__(self, kind: str, most: int = 4) -> None:
        self.kind = kind
        self.most = most
        self.turn = self.asked = 0
        self.entered: dict[int, Request] = {}
        self.drafted = self.accepted = 0

    def copy(self) -> FakeSpeculation:
        other = copy(self)
        other.entered = dict(self.entered)
        return other

    def enter(self, request: Request) -> None:
        self.entered[request.row] = request

    def leave(self, request: Request) -> None:
        assert request.finished

    def waits(self, running: Running) -> bool:
        self.asked += 1
        return self.asked % 7 < 4

    def propose(self, running: Running, most: np.ndarray) -> Proposals | None:
        self.turn += 1
        found = [self._drafts(running, place, int(most[place])) for place in range(running.count)]
        assert all(self.entered[r.row].request_id == r.request_id for r in running.requests), "nobody entered"
        if not any(found):
            return None
        return Proposals(np.array([*map(len, found)]), np.array([*chain(*found)], np.int32))

    def asks(self, running: Running) -> np.ndarray | None:
        return None

    def _drafts(self, running: Running, place: int, most: int) -> list[int]:
        request, known = running.requests[place], running.tokens_at(place).tolist()
        count = min(most, (self.turn + place) % (self.most + 1))
        right = alone(known, count, request.seed)
        wrong = {"accurate": count, "useless": 0, "adversarial": count - 1}[self.kind]
        return [token if i < wrong else (token + 1) % VOCABULARY for i, token in enumerate(right)]

    def meanwhile(self, running: Running) -> None:
        pass

    def committed(self, plan: StepPlan, result: StepResult, accepted: np.ndarray | None) -> None:
        if plan.drafts is not None:
            assert accepted is not None
            self.drafted += plan.num_drafts
            self.accepted += int(accepted.sum())
