"""Sorting: short lists of numbers (both ways) or words (alphabetically).

Plain format: `Sort ascending: 45, 12, 78` (or `descending`, or `alphabetically`) / `Answer:` -> ` 12, 45,
78`.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (("ascending", 1.0), ("descending", 1.0), ("alphabetically", 1.6))
MOST = 10  # entries of a list


class Unsorted(NamedTuple):
    way: str  # one of the kinds
    entries: tuple[str, ...]

    @property
    def ordered(self) -> list[str]:
        if self.way == "alphabetically":
            return sorted(self.entries)
        return sorted(self.entries, key=int, reverse=self.way == "descending")


def draw(dice: Dice, kind: str) -> Unsorted:
    """A list of 3 to 10 distinct entries."""
    count = dice.between(3, MOST)
    if kind == "alphabetically":
        return Unsorted(
            kind, tuple(dice.sample(lexicon()[dice.pick(("noun", "noun", "plainword", "animal"))], count))
        )
    digits = dice.weighted(((1, 0.05), (2, 0.4), (3, 0.4), (4, 0.15)))
    numbers: dict[int, None] = {}
    while len(numbers) < min(count, 9):
        numbers[dice.below(10 ** (digits if dice.chance(0.85) else dice.between(1, digits)))] = None
    return Unsorted(kind, tuple(map(str, numbers)))


def content(facts: Unsorted) -> str:
    """The entries, whatever their order and the way asked for."""
    return ",".join(sorted(facts.entries))


def render(facts: Unsorted, dice: Dice) -> Rendered:
    """The list and the way to sort it."""
    given, answer = ", ".join(facts.entries), ", ".join(facts.ordered)
    asks = {
        "ascending": ("Sort these numbers from smallest to largest: {}", "Sort {} in ascending order."),
        "descending": ("Sort these numbers from largest to smallest: {}", "Sort {} in descending order."),
        "alphabetically": ("Sort these words alphabetically: {}", "Put {} in alphabetical order."),
    }
    return Rendered(f"Sort {facts.way}: {given}\nAnswer:", dice.pick(asks[facts.way]).format(given), answer)


TASK = Task("sorting", KINDS, draw, content, render)
