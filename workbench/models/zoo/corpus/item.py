"""What a task yields: an item, and which split it belongs to. Knows no task and no tokenizer."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from workbench.models.zoo.corpus.dice import Dice, digest

Split: TypeAlias = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")
HELDOUT_ONE_IN = 20  # one content in twenty is held out


class Segment(NamedTuple):
    """A stretch of a training text."""

    text: str
    target: bool  # the model is to write it (full loss), rather than to read it


class Rendered(NamedTuple):
    """One item in words, before it becomes a plain prompt or a chat turn."""

    prompt: str  # the plain format, up to where the model takes over
    message: str  # the same request as a person would type it in a chat
    answer: str
    glue: str = " "  # between prompt and answer in the plain format
    more: tuple[tuple[str, str], ...] = ()  # (prompt, answer) that may follow in training only


class Item(NamedTuple):
    """One example: the prompt a model is given and the completion it should write."""

    task: str
    kind: str
    prompt: str
    completion: str
    more: tuple[Segment, ...] = ()  # further turns, used in training only

    @property
    def text(self) -> str:
        """The example as one string."""
        return self.prompt + self.completion + "".join(segment.text for segment in self.more)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The stretches of the training text, each tokenised by itself, as a prompt is in use."""
        return (Segment(self.prompt, False), Segment(self.completion, True), *self.more)


class Task(NamedTuple):
    """A generator: facts are drawn, their content decides the split, then they are put in words."""

    name: str
    kinds: tuple[tuple[str, float], ...]  # (kind, how often)
    draw: Callable[[Dice, str], Any]  # (dice, kind) -> facts
    content: Callable[[Any], str | None]  # what makes two items the same; None: an item of training only
    render: Callable[[Any, Dice], Rendered]
    stop: str = ""  # ends a plain answer before eos, where training texts go on with further questions


def split_of(content: str | None) -> Split:
    """The split that owns a content: a hash of the content decides, so no content is in both."""
    if content is None or digest("split", content) % HELDOUT_ONE_IN:
        return "train"
    return "heldout"


def draw_for(task: Task, split: Split, kind: str, dice: Dice) -> Any:
    """Facts of the given split: drawn until their content falls into it."""
    while True:
        facts = task.draw(dice, kind)
        if split_of(task.content(facts)) == split:
            return facts
