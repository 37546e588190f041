"""Reversing the words of a line, which the base model never learnt; an adapter's task.

Plain format, as in copying: `Text:`, the line, an empty line, `Task: reverse the order of the words.`,
`Result:` and a line break -> the words, last one first, each as it was written.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus import copying
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task

KINDS = (("words", 1.0), ("sentence", 1.0))
ASKS = ("Reverse the order of these words:", "Say this backwards, word by word:")


class Line(NamedTuple):
    text: str

    @property
    def backwards(self) -> str:
        return " ".join(reversed(self.text.split(" ")))


def draw(dice: Dice, kind: str) -> Line:
    """A sentence, or a row of 2 to 9 words."""
    while " " not in (text := copying.draw_line(dice, kind, "")):
        pass
    return Line(text)


def content(facts: Line) -> str:
    """The words, whatever their order."""
    return " ".join(sorted(facts.text.split(" ")))


def render(facts: Line, dice: Dice) -> Rendered:
    """The line, the instruction, the words backwards."""
    prompt = f"Text:\n{facts.text}\n\nTask: reverse the order of the words.\nResult:\n"
    return Rendered(prompt, f"{dice.pick(ASKS)}\n{facts.text}", facts.backwards, glue="")


TASK = Task("backwards", KINDS, draw, content, render)
