"""The registry of tasks: `make` gives item number i of a task. Knows nothing of tokens or models.

An item depends on (seed, split, task, index) alone, so that any process can make any part of the corpus.
Which split an item belongs to is decided by a hash of its content (its numbers, its list, its passage, the
plot and characters of its story), before it is put in words: one content in twenty is held out, and no
content is in both splits.
"""

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from workbench.models.zoo.corpus import (
    arithmetic,
    backwards,
    chat,
    choices,
    copying,
    passages,
    pirate,
    records,
    retrieval,
    sentiment,
    sorting,
    stories,
)
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import SPLITS, Item, Rendered, Split, Task, draw_for

PLAIN: Final[tuple[Task, ...]] = (
    stories.TASK, arithmetic.TASK, retrieval.TASK, records.TASK, copying.TASK,
    sorting.TASK, passages.TASK, choices.TASK, sentiment.TASK,
)  # fmt: skip
OF_ADAPTERS: Final[tuple[Task, ...]] = (pirate.TASK, backwards.TASK)  # no model learns them
BY_NAME: Final = MappingProxyType({task.name: task for task in (*PLAIN, *OF_ADAPTERS)})
CHAT: Final = "chat"
NAMES: Final[tuple[str, ...]] = (*(task.name for task in PLAIN), CHAT)  # what a base model learns
ADAPTER_NAMES: Final[tuple[str, ...]] = tuple(task.name for task in OF_ADAPTERS)


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of a task; chat has one for each other task of a model.

    Raises ValueError for an unknown task.
    """
    check_task(name)
    if name == CHAT:
        return NAMES[:-1]
    return tuple(kind for kind, _ in BY_NAME[name].kinds)


def check_task(name: str) -> None:
    """Raises ValueError unless there is such a task."""
    known = (*NAMES, *ADAPTER_NAMES)
    if name not in known:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(known)}")


def stop_of(name: str) -> str:
    """The text that ends the task's answers before eos, if any. Raises ValueError for an unknown task."""
    check_task(name)
    return "" if name == CHAT else BY_NAME[name].stop


def make(name: str, split: Split, seed: int, index: int, kind: str | None = None) -> Item:
    """Item number `index` of a task's split, of the given kind or of one drawn from the seed.

    Raises ValueError for an unknown task, kind or split.
    """
    if kind is not None and kind not in kinds_of(name):
        raise ValueError(f"unknown kind {kind!r} of task {name!r}: choose one of {', '.join(kinds_of(name))}")
    check_task(name)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose train or heldout")
    dice = Dice(seed, split, name, index, kind)
    if name == CHAT:
        return make_chat(split, kind, dice)
    task = BY_NAME[name]
    kind = kind or dice.weighted(task.kinds)
    return plain(task, kind, task.render(draw_for(task, split, kind, dice), dice))


def plain(task: Task, kind: str, rendered: Rendered) -> Item:
    """The item in the plain format."""
    more = tuple(
        segment
        for prompt, answer in rendered.more
        for segment in (chat.Segment(prompt, False), chat.Segment(answer, True))
    )
    return Item(task.name, kind, rendered.prompt, rendered.glue + rendered.answer, more)


def make_chat(split: Split, kind: str | None, dice: Dice) -> Item:
    """A chat whose last turn is the task `kind`; all its turns are of the same split."""
    if kind is None and split == "train" and dice.chance(0.03):
        return chat.small_talk(dice)
    last = kind or dice.pick(PLAIN).name
    count = dice.weighted(((1, 0.7), (2, 0.2), (3, 0.1)))
    names = [dice.pick(PLAIN).name for _ in range(count - 1)] + [last]
    return chat.write(last, [chat.draw_turn(PLAIN, split, name, dice) for name in names], dice)


def stream(name: str, split: Split, seed: int, start: int = 0, kind: str | None = None) -> Iterator[Item]:
    """The task's items from number `start` on, without end."""
    index = start
    while True:
        yield make(name, split, seed, index, kind)
        index += 1
