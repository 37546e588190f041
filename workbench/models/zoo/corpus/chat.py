"""Chat turns of all the other tasks, as the chat template writes them, with a little small talk.

`<|user|>message<|assistant|>` -> `answer`; earlier turns and a `<|system|>` line may come first. Every
assistant turn ends with `<|eos|>`, which the last one gets, as every text does, from whoever tokenises it.
"""

from typing import Any, NamedTuple

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Item, Rendered, Segment, Split, Task, draw_for

USER, ASSISTANT, SYSTEM, EOS = "<|user|>", "<|assistant|>", "<|system|>", "<|eos|>"
SYSTEMS = (
    "You are a helpful assistant.", "You are Wren, a small language model.", "Answer briefly.",
    "Be kind and precise.", "Answer with the result only.", "You help people with short tasks.",
)  # fmt: skip
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"),
    ("Good morning!", "Good morning! What shall we do today?"),
    ("Who are you?", "I am Wren, a small language model. I tell stories and do short tasks."),
    ("What is your name?", "My name is Wren."),
    ("What can you do?", "I can tell stories, compute, look things up in a list, copy and edit text, sort,"
     " and answer questions about a passage."),
    ("Thank you!", "You are welcome!"),
    ("Thanks, that helped.", "I am glad to hear that."),
    ("Goodbye!", "Goodbye! Come back soon."),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Can you help me?", "Of course. What do you need?"),
)  # fmt: skip


class Turn(NamedTuple):
    """A task's facts to be asked for in a chat."""

    task: Task
    facts: Any


def draw_turn(tasks: tuple[Task, ...], split: Split, name: str, dice: Dice) -> Turn:
    """Facts of the named task and the given split, of a kind that fits a chat."""
    task = next(task for task in tasks if task.name == name)
    kinds = tuple((kind, weight) for kind, weight in task.kinds if kind not in ("copy_long", "pairs100"))
    return Turn(task, draw_for(task, split, dice.weighted(kinds), dice))


def message_of(rendered: Rendered, dice: Dice) -> str:
    """What the user types: mostly a person's words, at times the plain format."""
    if rendered.prompt and dice.chance(0.2):
        return rendered.prompt
    return rendered.message


def write(kind: str, turns: list[Turn], dice: Dice) -> Item:
    """The chat of these turns; the last one is the item's question."""
    head = f"{SYSTEM}{dice.pick(SYSTEMS)}" if dice.chance(0.2) else ""
    if dice.chance(0.1):
        asked, said = dice.pick(SMALL_TALK)
        head += f"{USER}{asked}{ASSISTANT}{said}{EOS}"
    for turn in turns[:-1]:
        rendered = turn.task.render(turn.facts, dice)
        head += f"{USER}{message_of(rendered, dice)}{ASSISTANT}{rendered.answer}{EOS}"
    rendered = turns[-1].task.render(turns[-1].facts, dice)
    prompt = f"{head}{USER}{message_of(rendered, dice)}{ASSISTANT}"
    return Item("chat", kind, prompt, rendered.answer)


def small_talk(dice: Dice) -> Item:
    """A greeting and its answer; training only."""
    asked, said = dice.pick(SMALL_TALK)
    more: list[Segment] = []
    if dice.chance(0.3):
        then, reply = dice.pick(SMALL_TALK)
        more = [Segment(f"{EOS}", True), Segment(f"{USER}{then}{ASSISTANT}", False), Segment(reply, True)]
    return Item("chat", "talk", f"{USER}{asked}{ASSISTANT}", said, tuple(more))
