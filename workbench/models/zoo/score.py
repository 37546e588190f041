"""Held-out scores: how often a model's greedy answer equals the right one, and how well it foretells stories.

Knows the corpus, the tokenizer and the training model; the engine has an evaluation of its own.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from workbench.models.zoo import export
from workbench.models.zoo.corpus import tasks
from workbench.models.zoo.corpus.item import Item
from workbench.models.zoo.model import Llama
from workbench.models.zoo.sample import greedy
from workbench.models.zoo.tokens import BOS_ID, Encoder

SEED = 0  # of the held-out items
BATCH_TOKENS = 400_000  # prompts and answers of a batch together, on a GPU


class Score(NamedTuple):
    """Exact matches of one kind of items, or of all of a task's; for stories the perplexity instead."""

    task: str
    kind: str
    n: int
    right: int
    perplexity: float = 0.0  # a token, over the completions; 0 where accuracy is what counts

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy (Wilson 1927, J. Am. Stat. Assoc. 22:209)."""
        return wilson(self.right, self.n)


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Bounds of a proportion seen as `right` of `n`."""
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def folder(
    path: Path, n: int, *, device: str = "cpu", names: Sequence[str] = tasks.NAMES, seed: int = SEED
) -> list[Score]:
    """Scores of the model in a Hugging Face folder: `n` held-out items of each kind of the named tasks."""
    model = export.load(path).to(device)
    model.dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return all_kinds(model, Encoder(path), n, names=names, seed=seed)


def all_kinds(
    model: Llama,
    encoder: Encoder,
    n: int,
    *,
    names: Sequence[str] = tasks.NAMES,
    seed: int = SEED,
    longest: int = 2048,
) -> list[Score]:
    """Scores of every kind of the named tasks; items of more than `longest` tokens are passed over."""
    found: list[Score] = []
    for name in names:
        for kind in tasks.kinds_of(name):
            items = (tasks.make(name, "heldout", seed, index, kind) for index in range(n))
            pairs = [(item, encode(item, encoder)) for item in items]
            limit = min(longest, model.config.max_positions)
            fitting = [(item, ids) for item, ids in pairs if len(ids.prompt) + len(ids.answer) + 1 <= limit]
            if fitting:
                found.append(one_kind(model, encoder, name, kind, fitting))
    return found


class Encoded(NamedTuple):
    prompt: list[int]  # from bos on
    answer: list[int]  # without eos


def encode(item: Item, encoder: Encoder) -> Encoded:
    """An item's tokens."""
    return Encoded([BOS_ID, *encoder.encode(item.prompt)], encoder.encode(item.completion))


def one_kind(
    model: Llama, encoder: Encoder, name: str, kind: str, pairs: list[tuple[Item, Encoded]]
) -> Score:
    """The score of items of one kind: perplexity for stories, exact match for everything else."""
    if "stories" in (name, kind):
        return Score(name, kind, len(pairs), 0, perplexity(model, [ids for _, ids in pairs]))
    right = 0
    for batch in batches(pairs, BATCH_TOKENS if model.embed_tokens.weight.is_cuda else BATCH_TOKENS // 20):
        longest = max(len(ids.answer) for _, ids in batch)
        answers = greedy(model, [ids.prompt for _, ids in batch], longest + 1)
        right += sum(
            said(encoder.core.decode(answer), name) == item.completion
            for answer, (item, _) in zip(answers, batch, strict=True)
        )
    return Score(name, kind, len(pairs), right)


def said(text: str, name: str) -> str:
    """The part of a generated text that is the answer: up to the task's stop text, if it has one."""
    stop = tasks.stop_of(name)
    return text.split(stop, 1)[0] if stop else text


def batches(pairs: Iterable[tuple[Item, Encoded]], budget: int) -> Iterable[list[tuple[Item, Encoded]]]:
    """Items of like length together, each batch within a budget of tokens, padding counted."""
    batch: list[tuple[Item, Encoded]] = []
    for item, ids in sorted(pairs, key=lambda pair: -len(pair[1].prompt) - len(pair[1].answer)):
        width = len(batch[0][1].prompt) + len(batch[0][1].answer) if batch else 0
        if batch and (len(batch) + 1) * width > budget:
            yield batch
            batch = []
        batch.append((item, ids))
    if batch:
        yield batch


@torch.no_grad()
def perplexity(model: Llama, texts: list[Encoded]) -> float:
    """Perplexity a token of the answers, given their prompts."""
    device = model.embed_tokens.weight.device
    loss, count = 0.0, 0
    for start in range(0, len(texts), 32):
        chunk = texts[start : start + 32]
        width = max(len(ids.prompt) + len(ids.answer) for ids in chunk)
        tokens = torch.zeros(len(chunk), width, dtype=torch.long, device=device)
        weights = torch.zeros(len(chunk), width, device=device)
        for row, ids in enumerate(chunk):
            end = len(ids.prompt) + len(ids.answer)
            tokens[row, :end] = torch.tensor(ids.prompt + ids.answer, device=device)
            weights[row, len(ids.prompt) : end] = 1
        total = weights[:, 1:].sum()
        loss += float(model(tokens[:, :-1], tokens[:, 1:], weights[:, 1:]) * total)
        count += int(total)
    return math.exp(loss / count)


def by_task(scores: Sequence[Score]) -> list[Score]:
    """The scores of each task's kinds together; stories are left out."""
    found: dict[str, Score] = {}
    for score in scores:
        if not score.perplexity:
            old = found.get(score.task, Score(score.task, "all", 0, 0))
            found[score.task] = Score(score.task, "all", old.n + score.n, old.right + score.right)
    return list(found.values())
