"""What cases yield: from an engine with no batch, no cache, no overlap and room for everything.

And whether an answer is that one. Knows how to ask an engine, and nothing of how it works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tqdm.auto import tqdm

from workbench.llm import LLM
from workbench.outputs import RequestOutput
from workbench.params import LoRARequest
from workbench.soak.cases import Case
from workbench.soak.settings import MAX_MODEL_LEN, RANK

Loras = Mapping[int, LoRARequest | None]  # the adapters by their numbers; 0: None
EARLY = ("abort", "error")  # reasons to end before the answer is whole


class Answer(NamedTuple):
    """One completion."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None


def answers_of(output: RequestOutput) -> list[Answer]:
    """The completions of an output, in their order."""
    return [Answer(tuple(one.token_ids), one.text, one.finish_reason) for one in output.outputs]


def expect(model: str, cases: Sequence[Case], device: str, lora: Loras) -> list[list[Answer]]:
    """The answers of each case, computed one after the other."""
    with LLM(
        model,
        device=device,
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=1,
        max_num_batched_tokens=MAX_MODEL_LEN,
        enable_prefix_caching=False,
        async_scheduling=False,
        enable_lora=True,
        max_lora_rank=RANK,
    ) as llm:
        return [
            answers_of(
                llm.generate(case.prompt, case.params(), use_tqdm=False, lora_request=lora[case.adapter])[0]
            )
            for case in tqdm(cases, desc="Expected answers", unit="case", leave=False)
        ]


def difference(case: Case, found: Sequence[Answer], expected: Sequence[Answer], early: bool) -> str | None:
    """What is wrong with an answer, or None. `early`: it may have been aborted, or met a fault."""
    if len(found) != len(expected):
        return f"{len(found)} completions where {len(expected)} are due, of {case}"
    for one, due in zip(found, expected, strict=True):
        if one.finish_reason in EARLY and early:
            if one.token_ids != due.token_ids[: len(one.token_ids)]:
                return f"{one} does not begin {due}, of {case}"
        elif one != due:
            return f"{one} where {due} is due, of {case}"
    return None
