"""What is asked of a model, what counts as right, and the scores of the model in training.

Knows the corpus, the tokenizer and the training model. `workbench.evals.zoo` asks the engine the same items
and judges by the same functions.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch

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


class Encoded(NamedTuple):
    prompt: list[int]  # from bos on
    answer: list[int]  # without eos


Pairs: TypeAlias = list[tuple[Item, Encoded]]


def is_told(name: str, kind: str) -> bool:
    """Whether items of the kind are stories, which have a perplexity and no right answer."""
    return "stories" in (name, kind)


def is_right(item: Item, text: str) -> bool:
    """Whether a generated text is the item's answer, to the letter."""
    return said(text, item.task) == item.completion


def said(text: str, name: str) -> str:
    """The part of a generated text that is the answer: up to the task's stop text, if it has one."""
    stop = tasks.stop_of(name)
    return text.split(stop, 1)[0] if stop else text


def held_out(name: str, kind: str, n: int, seed: int = SEED) -> list[Item]:
    """The first `n` different held-out items of a kind; fewer where `4 n` draws do not find as many."""
    found: dict[Item, None] = {}
    for index in range(4 * n):
        found[tasks.make(name, "heldout", seed, index, kind)._replace(more=())] = None
        if len(found) == n:
            break
    return list(found)


def encoded(items: Iterable[Item], encoder: Encoder, limit: int) -> Pairs:
    """The items with their tokens; those of more than `limit` tokens, bos and eos counted, are left out."""
    pairs = [(item, encode(item, encoder)) for item in items]
    return [(item, ids) for item, ids in pairs if len(ids.prompt) + len(ids.answer) + 1 <= limit]


def encode(item: Item, encoder: Encoder) -> Encoded:
    """An item's tokens."""
    return Encoded([BOS_ID, *encoder.encode(item.prompt)], encoder.encode(item.completion))


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
    limit = min(longest, model.config.max_positions)
    for name in names:
        for kind in tasks.kinds_of(name):
            pairs = encoded(held_out(name, kind, n, seed), encoder, limit)
            if pairs:
                found.append(one_kind(model, encoder, name, kind, pairs))
    return found


def one_kind(model: Llama, encoder: Encoder, name: str, kind: str, pairs: Pairs) -> Score:
    """The score of items of one kind: perplexity for stories, exact match for everything else."""
    if is_told(name, kind):
        return Score(name, kind, len(pairs), 0, perplexity(model, [ids for _, ids in pairs]))
    right = 0
    for batch in batches(pairs, BATCH_TOKENS if model.embed_tokens.weight.is_cuda else BATCH_TOKENS // 20):
        longest = max(len(ids.answer) for _, ids in batch)
        answers = greedy(model, [ids.prompt for _, ids in batch], longest + 1)
        right += sum(
            is_right(item, encoder.core.decode(answer))
            for answer, (item, _) in zip(answers, batch, strict=True)
        )
    return Score(name, kind, len(pairs), right)


def batches(pairs: Pairs, budget: int) -> Iterator[Pairs]:
    """Items of like length together, each batch within a budget of tokens, padding counted."""
    batch: Pairs = []
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
