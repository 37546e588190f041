"""Logits processors that tests hand to engines, and requests to run through them."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.llm import tiny
from workbench import LLM, RequestOutput
from workbench.logits_processors import AdapterLogitsProcessor, BatchUpdate, LogitsProcessor, update_rows
from workbench.params import SamplingParams

COUNT = 8

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.0},
    {"temperature": 1.1, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.4},
    {"temperature": 1.0, "allowed_token_ids": list(range(5, 60)), "min_tokens": 4},
    {"temperature": 0.0, "repetition_penalty": 1.5},
]


def requests(**more: Any) -> tuple[list[list[int]], list[SamplingParams]]:
    dice = random.Random(17)
    prompts = [[dice.randrange(3, tiny.VOCAB) for _ in range(6 + 5 * i)] for i in range(len(OPTIONS))]
    common = {"max_tokens": COUNT, "ignore_eos": True} | more
    return prompts, [SamplingParams(**options, seed=50 + i, **common) for i, options in enumerate(OPTIONS)]


def generate(llm: LLM, **more: Any) -> list[RequestOutput]:
    return llm.generate(*requests(**more), use_tqdm=False)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


class Identity(LogitsProcessor):
    """Changes nothing."""

    invariant = False

    def __init__(self, config: Any, device: torch.device) -> None:
        self.config, self.device = config, device

    def is_argmax_invariant(self) -> bool:
        return self.invariant

    def update_state(self, batch_update: BatchUpdate | None) -> None: ...

    def apply(self, logits: Tensor) -> Tensor:
        return logits


class InvariantIdentity(Identity):
    invariant = True


class Bias(Identity):
    """`extra_args={"bias": {token: bias}}`, what logit_bias is."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.by_row: dict[int, dict[int, float]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        if not isinstance((sampling_params.extra_args or {}).get("bias", {}), dict):
            raise ValueError("bias is a dict of token id to bias")

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        update_rows(self.by_row, batch_update, lambda added: (added.params.extra_args or {}).get("bias"))

    def apply(self, logits: Tensor) -> Tensor:
        for row, biases in self.by_row.items():
            for token, bias in biases.items():
                logits[row, token] += bias
        return logits


class NewBias(Bias):
    """The same, in a tensor of its own."""

    def apply(self, logits: Tensor) -> Tensor:
        return super().apply(logits.clone())


class MinP(Identity):
    """`extra_args={"min_p": p}`, what min_p is."""

    invariant = True

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.by_row: dict[int, float] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        update_rows(self.by_row, batch_update, lambda added: (added.params.extra_args or {}).get("min_p"))

    def apply(self, logits: Tensor) -> Tensor:
        for row, p in self.by_row.items():
            floor = logits[row].max() + torch.tensor(p).log()
            logits[row] = logits[row].masked_fill(logits[row] < floor, float("-inf"))
        return logits


class Seen(NamedTuple):
    """A row of a step, as a processor saw it."""

    name: str
    prompt: list[int]
    output: list[int]
    likeliest: int


class Recorder(Identity):
    """Writes down who sits in which row, from updates alone, and what each row's logits say."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.rows: dict[int, Any] = {}
        self.size = 0
        self.steps: list[list[Seen]] = []
        self.updates: list[BatchUpdate | None] = []
        recorders.append(self)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        self.updates.append(batch_update)
        update_rows(self.rows, batch_update, lambda added: added)
        if batch_update is not None:
            self.size = batch_update.batch_size

    def apply(self, logits: Tensor) -> Tensor:
        assert sorted(self.rows) == list(range(self.size)) == list(range(len(logits))), "rows are dense"
        self.steps.append(
            [
                Seen(
                    self.rows[row].params.extra_args["name"],
                    list(self.rows[row].prompt_tok_ids),
                    list(self.rows[row].output_tok_ids),
                    int(logits[row].argmax()),
                )
                for row in range(self.size)
            ]
        )
        return logits


recorders: list[Recorder] = []  # made by engines; a test takes its own out


def take_recorder() -> Recorder:
    return recorders.pop()


class Failing(Identity):
    """`extra_args={"fail": how}` of any request in the batch makes it fail, at its third token."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.by_row: dict[int, Any] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        update_rows(
            self.by_row,
            batch_update,
            lambda added: added if "fail" in (added.params.extra_args or {}) else None,
        )
        if any(how == "update" for _, how in self._due()):
            raise KeyError("injected")

    def _due(self) -> list[tuple[int, str]]:
        return [
            (row, added.params.extra_args["fail"])
            for row, added in self.by_row.items()
            if len(added.output_tok_ids) >= 2
        ]

    def apply(self, logits: Tensor) -> Any:
        for row, how in self._due():
            if how == "raise":
                logits.fill_(float("nan"))
                raise KeyError("injected")
            if how == "shape":
                return logits[:, 1:]
            if how == "nothing":
                return None
            logits[row] = {"nan": float("nan"), "empty": float("-inf")}[how]
        return logits


class Banning(AdapterLogitsProcessor):
    """An adapter of its own: `extra_args={"ban": token}`."""

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        token = (params.extra_args or {}).get("ban")
        if token == "nothing":
            raise KeyError("injected")
        if token is None:
            return None

        def ban(output_ids: list[int], logits: Tensor) -> Tensor:
            logits[token] = float("-inf")
            return logits

        return ban
