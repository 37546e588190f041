"""Tasks from the zoo's generator: held-out items, a task a measure. Knows the corpus and its tokenizer.

    arithmetic      exact: what a sum, difference or product is
    records         json: a sentence as a record
    continuations   choice: which of four is how a story goes on
    stories         perplexity: a story told on request
    lookup          exact: a value in a list, by length of the context and depth of the place (the kinds)

An item depends on (task, number, seed) alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from workbench.evals.tasks import Sample, Task, make_task
from workbench.models.zoo.corpus import retrieval, tasks
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import split_of
from workbench.models.zoo.score import held_out
from workbench.models.zoo.tokens import FOLDER, Encoder

CONTEXT = 400  # tokens before the choices of `continuations`, about
CHOICE = (14, 26)  # tokens of a choice: 20, about
LENGTHS = (128, 256, 512)  # tokens of the context of `lookup`, about
DEPTHS = (0, 25, 50, 75, 100)  # percent of the list before the pair that is asked for
SENTENCE = re.compile(r'[.!?]"?(?=\s)')


def zoo_task(name: str, n: int, seed: int = 0) -> Task:
    """A task of at most `n` samples.

    Raises:
        ValueError: an unknown name, or `n` below 1.
    """
    if name not in MAKERS:
        raise ValueError(f"no task {name!r}: choose among {', '.join(MAKERS)}")
    if n < 1:
        raise ValueError(f"{n} samples measure nothing: ask for at least 1")
    return MAKERS[name](n, seed)


def _arithmetic(n: int, seed: int) -> Task:
    kinds = tasks.kinds_of("arithmetic")
    samples = [sample for kind in kinds for sample in _items("arithmetic", kind, -(-n // len(kinds)), seed)]
    return make_task("arithmetic", "exact", samples[:n])


def _records(n: int, seed: int) -> Task:
    return make_task("records", "json", _items("records", "to_json", n, seed), "\n")


def _stories(n: int, seed: int) -> Task:
    return make_task("stories", "perplexity", _items("stories", "asked", n, seed))


def _items(name: str, kind: str, n: int, seed: int) -> list[Sample]:
    return [Sample(item.prompt, item.completion, kind) for item in held_out(name, kind, n, seed)]


# --- how a story goes on --------------------------------------------------------------------------------


class _Story(NamedTuple):
    before: str  # up to the end of a sentence
    then: str  # the sentences that follow, some 20 tokens, with the space in front


def _continuations(n: int, seed: int) -> Task:
    """The right choice is how the story goes on, the others how three other stories do."""
    encoder = Encoder(FOLDER)
    told = [item.completion for item in held_out("stories", "asked", n + n // 2 + 8, seed)]
    stories = [story for text in told if (story := _parted(text, encoder)) is not None]
    samples = []
    for index in range(min(n, len(stories))):
        others = [stories[(index + ahead) % len(stories)].then for ahead in (1, 2, 3)]
        choices = [stories[index].then, *others]
        if len(set(choices)) == len(choices):
            order = Dice(seed, "continuations", index).sample(range(4), 4)
            context = _led_up_to(stories[index].before, told, index, encoder)
            samples.append(Sample(context, choices[0], "", tuple(choices[place] for place in order)))
    return make_task("continuations", "choice", samples)


def _parted(text: str, encoder: Encoder) -> _Story | None:
    """A story in two, past its middle, where the sentences that follow have the length of a choice."""
    ends = [match.end() for match in SENTENCE.finditer(text)]
    for place, end in enumerate(ends):
        if 2 * end < len(text):
            continue
        for last in ends[place + 1 :]:
            then = " " + text[end:last].strip()
            if CHOICE[0] <= len(encoder.encode(then)) <= CHOICE[1]:
                return _Story(text[:end], then)
    return None


def _led_up_to(before: str, told: list[str], index: int, encoder: Encoder) -> str:
    """The beginning of a story behind as much of the stories ahead of it as makes up a context."""
    room = CONTEXT - len(encoder.encode(before))
    lead = "\n\n".join(told[(index - back) % len(told)] for back in (4, 3, 2))
    cuts = [match.end() for match in SENTENCE.finditer(lead)]
    fitting = (lead[cut:].strip() for cut in cuts if len(encoder.encode(lead[cut:])) <= room)
    ahead = next(fitting, "")
    return f"{ahead}\n\n{before}" if ahead else before


# --- a value in a list ----------------------------------------------------------------------------------


def _lookup(n: int, seed: int) -> Task:
    places = [(length, depth) for length in LENGTHS for depth in DEPTHS]
    encoder = Encoder(FOLDER)
    samples = [
        _list(length, depth, Dice(seed, "lookup", length, depth, number), encoder)
        for number in range(-(-n // len(places)))
        for length, depth in places
    ]
    return make_task("lookup", "exact", samples[:n], retrieval.TASK.stop)


def _list(length: int, depth: int, dice: Dice, encoder: Encoder) -> Sample:
    for facts in _heldout_lists(length, depth, dice, encoder):
        rendered = retrieval.render(facts, dice)
        return Sample(rendered.prompt, rendered.glue + rendered.answer, f"{length} tokens, {depth} % deep")
    raise AssertionError("lists are drawn without end")


def _heldout_lists(length: int, depth: int, dice: Dice, encoder: Encoder) -> Iterator[retrieval.Pairs]:
    """Lists of about so many tokens, the pair that is asked for at its depth."""
    while True:
        pairs = retrieval.draw(dice, "pairs100").pairs
        sizes = [len(encoder.encode(f"- {key}: {value}\n")) for key, value in pairs]
        most = next((count for count in range(len(sizes)) if sum(sizes[: count + 1]) > length), None)
        if most is not None:  # else the list is too short
            facts = retrieval.Pairs(pairs[:most], (round(depth / 100 * (most - 1)),))
            if split_of(retrieval.content(facts)) == "heldout":
                yield facts


MAKERS: dict[str, Callable[[int, int], Task]] = {
    "arithmetic": _arithmetic,
    "records": _records,
    "continuations": _continuations,
    "stories": _stories,
    "lookup": _lookup,
}
