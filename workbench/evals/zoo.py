"""Held-out scores of a zoo model: the engine answers, and the zoo's corpus says what was right.

Knows the front door and the corpus. Answers are greedy and have to match to the letter. Stories have no right
answer but a perplexity a token, which the training model computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from workbench.config import EngineConfig
from workbench.llm import LLM
from workbench.models.zoo import export, low_rank, score, tokens
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.score import Pairs, Score
from workbench.params import LoRARequest, SamplingParams

SLACK = 8  # tokens that an answer may have over the right one before it is cut: by then it is wrong


class Evaluation(NamedTuple):
    """Scores, a kind each, in the order of the tasks, and what computed them."""

    scores: list[Score]
    config: EngineConfig


class Kind(NamedTuple):
    """Items of one kind and their tokens."""

    task: str
    name: str
    pairs: Pairs

    @property
    def is_told(self) -> bool:
        return score.is_told(self.task, self.name)


def measure(
    folder: Path,
    n: int,
    *,
    names: Sequence[str] = tasks.NAMES,
    seed: int = score.SEED,
    device: str = "auto",
    adapter: Path | None = None,
    bar: bool | Callable[..., Any] = True,
) -> Evaluation:
    """Scores of the model in a folder on held-out items, `n` a task, shared evenly among its kinds.

    Args:
        folder: a Hugging Face folder with the zoo's tokenizer.
        n: items a task, or more where its kinds do not divide them; fewer where there are no more.
        names: tasks; see `workbench zoo list`.
        seed: of the items.
        device: "auto", "cpu" or "cuda".
        adapter: folder of a LoRA adapter that `workbench zoo train` made; None: the model by itself.
        bar: whether there is a progress bar, or what makes one in tqdm's way.

    Raises:
        ValueError: an unknown task, `n` below 1, another tokenizer, or a context that no item fits.
        OSError: a file is missing.
    """
    check(folder, n, names)
    asked = LoRARequest(adapter.name, 1, str(adapter)) if adapter else None
    with LLM(str(folder), device=device, enable_lora=adapter is not None) as llm:
        kinds = draw(folder, n, names, seed, llm.config.max_model_len)
        right = answered(llm, [kind for kind in kinds if not kind.is_told], bar, asked)
        config = llm.config
    told = perplexities(folder, config, [kind for kind in kinds if kind.is_told], bar, adapter)
    scores = [
        Score(kind.task, kind.name, len(kind.pairs), 0, next(told))
        if kind.is_told
        else Score(kind.task, kind.name, len(kind.pairs), next(right))
        for kind in kinds
    ]
    return Evaluation(scores, config)


def check(folder: Path, n: int, names: Sequence[str]) -> None:
    """Raises what `measure` says, before anything is loaded."""
    if n < 1:
        raise ValueError(f"{n} items a task measure nothing: ask for at least 1")
    for name in names:
        tasks.check_task(name)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no tokenizer.json: give a folder that `workbench zoo train` made"
        )
    if (folder / "tokenizer.json").read_bytes() != (tokens.FOLDER / "tokenizer.json").read_bytes():
        raise ValueError(
            f"{folder} has a tokenizer of its own: this evaluates the zoo's models and those that"
            " `workbench zoo train` makes"
        )


def draw(folder: Path, n: int, names: Sequence[str], seed: int, longest: int) -> list[Kind]:
    """The items of every kind, those left out that are too long for the model."""
    encoder = tokens.Encoder(folder)
    kinds = [
        Kind(name, kind, score.encoded(score.held_out(name, kind, share(name, n), seed), encoder, longest))
        for name in dict.fromkeys(names)
        for kind in tasks.kinds_of(name)
    ]
    if not any(kind.pairs for kind in kinds):
        raise ValueError(f"no item of {', '.join(names)} fits a context of {longest} tokens: add other tasks")
    return [kind for kind in kinds if kind.pairs]


def share(name: str, n: int) -> int:
    """Items of each kind, so that those with a right answer are at least `n` together."""
    kinds = tasks.kinds_of(name)
    return -(-n // (sum(not score.is_told(name, kind) for kind in kinds) or len(kinds)))


def answered(
    llm: LLM, kinds: Sequence[Kind], bar: bool | Callable[..., Any], adapter: LoRARequest | None = None
) -> Iterator[int]:
    """How many answers of each kind are right; all are asked at once."""
    right = judged(llm, [pair for kind in kinds for pair in kind.pairs], bar, adapter)
    return iter([sum(next(right) for _ in kind.pairs) for kind in kinds])


def judged(
    llm: LLM, pairs: Pairs, bar: bool | Callable[..., Any], adapter: LoRARequest | None = None
) -> Iterator[bool]:
    """Whether each answer is right."""
    params = [
        SamplingParams(
            temperature=0, max_tokens=len(ids.answer) + SLACK, stop=tasks.stop_of(item.task) or None
        )
        for item, ids in pairs
    ]
    prompts = [item.prompt for item, _ in pairs]
    outputs = llm.generate(prompts, params, use_tqdm=bar, lora_request=adapter) if pairs else []
    return (score.is_right(item, out.outputs[0].text) for (item, _), out in zip(pairs, outputs, strict=True))


@torch.inference_mode()
def perplexities(
    folder: Path,
    config: EngineConfig,
    kinds: Sequence[Kind],
    bar: bool | Callable[..., Any],
    adapter: Path | None = None,
) -> Iterator[float]:
    """The perplexity a token of each kind's stories, on the engine's device and in its dtype."""
    if not kinds:
        return iter(())
    model = export.load(folder)
    model = (low_rank.load(model, adapter) if adapter else model).to(config.device)
    model.dtype = getattr(torch, config.dtype)
    make = bar if callable(bar) else tqdm
    shown = make(kinds, desc="Perplexity", unit="kind", disable=not bar)
    return iter([score.perplexity(model, [ids for _, ids in kind.pairs]) for kind in shown])
