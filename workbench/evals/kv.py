"""What a KV cache of fewer bits costs: the same texts and questions with the model's own and with others.

Of every text each engine tells the whole distribution of every next token; of every question and of every
beginning it tells what it would say. Knows the front door, and the zoo's corpus for want of another text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from workbench.evals import zoo
from workbench.llm import LLM
from workbench.models.spec import read_spec
from workbench.models.zoo import score, tokens
from workbench.models.zoo.corpus import tasks
from workbench.params import SamplingParams

BASE = "auto"  # what the others are compared with: the model's own dtype
LONGEST = 2048  # tokens of a text, and positions that are told apart
EDGES = (0, 64, 128, 256, 512, 1024, 2048)  # of what counts as one context length
OUT = 64  # tokens behind a beginning, in which two caches may come to say different things
ROOM = 4  # texts of LONGEST that the cache of a GPU engine holds: two engines share its memory

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]
COLUMNS = (
    *("kv", "context", "tokens", "perplexity", "ratio", "kl", "kl_p99", "top1"),
    *("beginnings", "parted", "first_parted", "questions", "accuracy"),
)


class Text(NamedTuple):
    """What is read; told of from token `first` on, before which is what the model was asked for."""

    ids: list[int]
    first: int


class Told(NamedTuple):
    """Of every token that counts of some texts; all [tokens]."""

    position: npt.NDArray[np.int64]  # tokens before it
    logprob: Floats  # of the token that came
    base_logprob: Floats
    kl: Floats  # of the distributions of the next token, from the base's to the other's, in nats
    same_best: npt.NDArray[np.bool_]  # both think the same token likeliest


class Beginning(NamedTuple):
    """A beginning that both engines continued, greedily."""

    context: int  # tokens
    parted: int | None  # the first token in which they differ, counted from 0; None: none of OUT


class Answer(NamedTuple):
    """An answer to one of the zoo's questions."""

    task: str
    context: int  # tokens of the question
    right: bool


class Comparison(NamedTuple):
    """One kind of cache beside the model's own."""

    kv: str
    device: str  # by name: where both were
    told: Told
    beginnings: list[Beginning]
    answers: list[Answer]


def compare(
    folder: Path,
    kinds: Sequence[str],
    *,
    texts: int = 64,
    questions: int = 200,
    text: str | None = None,
    seed: int = score.SEED,
    device: str = "auto",
    bar: bool = True,
) -> list[Comparison]:
    """The base, compared with itself, and each of `kinds` (of kv_cache_dtype), beside the base.

    Args:
        folder: a model's folder.
        texts: how many are read, of up to 2,048 tokens each.
        questions: of the zoo's tasks, of each so many; 0: none, as behind another tokenizer.
        text: what to read; None: held-out stories of the zoo's corpus, each alone
            and told of behind its prompt.

    Raises:
        ValueError: an unknown kind, or too short a text.
    """
    longest = min(LONGEST, read_spec(folder).max_position_embeddings - 1)
    found = []
    for kv in dict.fromkeys((BASE, *kinds)):
        with _open(folder, BASE, device, longest) as base, _open(folder, kv, device, longest) as other:
            reading = _read(base, text, texts, longest, seed)
            told = told_by(base, other, reading, bar)
            pairs = _questions(folder, questions, seed, longest) if questions else []
            parted, answers = parted_by(base, other, reading, longest), _answers(other, pairs)
            found.append(Comparison(kv, other.config.device_name, told, parted, answers))
    return found


def _open(folder: Path, kv: str, device: str, longest: int) -> LLM:
    spec = read_spec(folder)
    room = ROOM * LONGEST * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 4
    return LLM(
        str(folder),
        device=device,
        kv_cache_dtype=kv,
        kv_cache_memory_bytes=room,
        max_model_len=longest + 1,
        max_num_seqs=64,
    )


# --- texts ----------------------------------------------------------------------------------------------


def _read(llm: LLM, text: str | None, count: int, longest: int, seed: int) -> list[Text]:
    """`count` texts of up to `longest` tokens, or as many as there are."""
    if count < 1:
        raise ValueError(f"texts is {count}: use at least 1")
    if text is None:
        return _stories(count, longest, seed)
    ids = llm.get_tokenizer().encode(text)[: count * longest]
    found = [Text(ids[start : start + longest], 1) for start in range(0, len(ids), longest)]
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens: give one of at least 2")
    return [one for one in found if len(one.ids) > 1]


def _stories(count: int, longest: int, seed: int) -> list[Text]:
    """Held-out stories of every kind in turn."""
    encoder, kinds = tokens.Encoder(tokens.FOLDER), tasks.kinds_of("stories")
    each = -(-count // len(kinds))
    items = [score.held_out("stories", kind, each, seed) for kind in kinds]
    pairs = score.encoded(itertools.chain.from_iterable(zip(*items, strict=False)), encoder, longest)
    return [Text([*ids.prompt, *ids.answer], len(ids.prompt)) for _, ids in pairs[:count]]


def told_by(base: LLM, other: LLM, reading: Sequence[Text], bar: bool) -> Told:
    """What both say of every token, a text at a time: each token has a distribution over the vocabulary."""
    parts = []
    for text in tqdm(reading, desc=f"Reading with {other.config.kv_cache_dtype}", disable=not bar):
        (expected, chosen), (found, also) = _distributions(base, text), _distributions(other, text)
        kl = (np.exp(expected) * (expected - found)).sum(1)
        same = expected.argmax(1) == found.argmax(1)
        places = np.arange(text.first, len(text.ids))
        parts.append(Told(places, also, chosen, np.maximum(kl, 0.0), same))
    return Told(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _distributions(llm: LLM, text: Text) -> tuple[Floats, Floats]:
    """Logprobs of every next token that counts [tokens, vocab], and of the one that came."""
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate([text.ids], asked, use_tqdm=False)
    behind, skipped = output.prompt_logprobs.behind_first, text.first - 1  # type: ignore[union-attr]
    return np.stack(behind.whole[skipped:]).astype(np.float64), behind.sampled[skipped:].astype(np.float64)


# --- what they say --------------------------------------------------------------------------------------


def parted_by(base: LLM, other: LLM, reading: Sequence[Text], longest: int) -> list[Beginning]:
    """Beginnings of every text, the prompt and one a context length, continued by both."""
    prompts = [
        text.ids[:length]
        for text in reading
        for length in dict.fromkeys((text.first, *EDGES))
        if text.first <= length <= min(len(text.ids), longest - OUT)
    ]
    params = SamplingParams(temperature=0, max_tokens=OUT, ignore_eos=True, detokenize=False)
    said = [
        [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
        for llm in (base, other)
    ]
    return [
        Beginning(len(prompt), _first_difference(*both)) for prompt, *both in zip(prompts, *said, strict=True)
    ]


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def _questions(folder: Path, count: int, seed: int, longest: int) -> list[zoo.Kind]:
    zoo.check(folder, count, tasks.NAMES)
    kinds = zoo.draw(folder, count, tasks.NAMES, seed, longest)
    return [kind for kind in kinds if not kind.is_told]


def _answers(llm: LLM, kinds: Sequence[zoo.Kind]) -> list[Answer]:
    pairs = [pair for kind in kinds for pair in kind.pairs]
    return [
        Answer(item.task, len(ids.prompt), right)
        for (item, ids), right in zip(pairs, zoo.judged(llm, pairs, False), strict=True)
    ]


# --- tables and pictures --------------------------------------------------------------------------------


def rows(found: Sequence[Comparison]) -> list[Row]:
    """A line for each cache and context length that came up, and one for all lengths together."""
    spans = (*itertools.pairwise(EDGES), (0, EDGES[-1]))
    lines = [_row(one, *span) for one in found for span in spans]
    return [line for line in lines if any(line[name] for name in ("tokens", "beginnings", "questions"))]


def _row(one: Comparison, low: int, high: int) -> Row:
    def within(context: Any) -> Any:
        return (context >= low) & (context < high)

    told = Told(*(column[within(one.told.position)] for column in one.told))
    begun = [beginning for beginning in one.beginnings if within(beginning.context)]
    parted = [beginning.parted for beginning in begun if beginning.parted is not None]
    answers = [answer.right for answer in one.answers if within(answer.context)]
    values = (
        one.kv,
        f"{low}-{high - 1}",
        len(told.position),
        *_of_texts(told),
        len(begun),
        len(parted),
        _mean(parted, np.median),
        len(answers),
        _mean(answers, np.mean),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _of_texts(told: Told) -> tuple[float | None, ...]:
    if not len(told.position):
        return (None,) * 5
    perplexity, base = np.exp(-told.logprob.mean()), np.exp(-told.base_logprob.mean())
    numbers = (
        perplexity,
        perplexity / base,
        told.kl.mean(),
        np.quantile(told.kl, 0.99),
        told.same_best.mean(),
    )
    return tuple([float(f"{number:.5g}") for number in numbers])


def _mean(values: Sequence[Any], of: Callable[[Sequence[Any]], Any]) -> float | None:
    return float(f"{of(values):.5g}") if values else None


def plot(found: Sequence[Comparison], bins: int = 16) -> Any:
    """KL by position, a line a cache, as a matplotlib figure; the mean of equally many tokens a point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for one in found:
        if one.kv == BASE:
            continue
        order = np.argsort(one.told.position, kind="stable")
        parts = np.array_split(order, min(bins, len(order)))
        places = [one.told.position[part].mean() for part in parts]
        axes.plot(
            places, [one.told.kl[part].mean() for part in parts], marker="o", markersize=3, label=one.kv
        )
    axes.set(xlabel="tokens before", ylabel="KL from the model's own cache, nats", yscale="log")
    axes.legend()
    return figure
