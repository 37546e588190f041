"""A runner without a model: the next token depends on every token the runner was really handed.

It keeps a KV store of token ids by block, writes and reads it through the block tables of the plan, and
hashes what it reads. A wrong table, a block reused too early or a stale hit therefore changes tokens.
"""

from __future__ import annotations

import hashlib
from collections import deque

import numpy as np

from workbench.engine.plan import StepPlan
from workbench.engine.result import Failure, Forced, StepResult

VOCABULARY = 97


def next_token(tokens: np.ndarray, seed: int = 0) -> int:
    """A token that depends on every token before it and on the seed."""
    digest = hashlib.blake2b(
        tokens.astype(np.int32).tobytes() + seed.to_bytes(8, "little"), digest_size=4
    ).digest()
    return int.from_bytes(digest, "little") % VOCABULARY


def alone(prompt: list[int], count: int, seed: int = 0, stop: frozenset[int] = frozenset()) -> list[int]:
    """What a request generates with nobody beside it."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(np.array(tokens), seed))
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
            self.rows[added.row]["constrained"] = added.params.structured_outputs is not None
        for group, growth in enumerate(plan.grown):
            for row, place, block in zip(growth.rows, growth.places, growth.blocks, strict=True):
                table = self.rows[int(row)]["tables"][group]
                assert place == len(table), "a block table grows with a gap"
                table.append(block)
        if plan.index in self.fail_at:
            raise RuntimeError(f"injected at step {plan.index}")
        work = list(
            zip(plan.rows.tolist(), plan.starts.tolist(), plan.counts.tolist(), plan.samples, strict=True)
        )
        for row, start, count, _ in work:  # every write of a step comes before its reads, as in a layer
            self._write(self.rows[row], start, count)
        sampled, forced = [], []
        for row, start, count, samples in work:
            if samples:
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
        return StepResult(
            plan.index, plan.rows[plan.samples], np.array(sampled, np.int32), None, 0.0, 0.0, 0.0,
            forced=tuple(forced),
        )  # fmt: skip

    def _follow(self, state: dict, count: int) -> np.ndarray:
        """The next tokens, which nobody has to sample, up to one that is to fail."""
        begin = len(state["tokens"])
        while len(state["tokens"]) < begin + count:
            if len(state["tokens"]) + 1 - state["prompt"] == self.failing.get(state["seed"]):
                break
            state["tokens"].append(next_token(np.array(state["tokens"]), state["seed"]))
        return np.array(state["tokens"][begin:], np.int32)

    def collect(self, ticket: StepResult) -> StepResult:
        return ticket

    def _write(self, state: dict, start: int, count: int) -> None:
        for position in range(start, start + count):
            block, offset = divmod(position, self.block_size)
            for group, table in enumerate(state["tables"]):
                assert table[block] != 0, "a write into the null block"
                self.store[group, table[block], offset] = state["tokens"][position]

    def _read(self, state: dict, length: int) -> int:
        assert length == len(state["tokens"]), "a sampled position is not the last"
        read = [state["tokens"]]
        for group, (table, window) in enumerate(zip(state["tables"], self.windows, strict=True)):
            first = 0 if window is None else max(0, length - window)
            got = [
                self.store[group, table[p // self.block_size], p % self.block_size]
                for p in range(first, length)
            ]
            assert got == state["tokens"][first:], (
                f"{got} {state} the cache does not hold the request's tokens"
            )
            read.append(got)
        return next_token(np.array(read[1] if self.windows[0] is None else read[0]), state["seed"])
