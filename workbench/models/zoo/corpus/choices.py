"""Multiple choice: a question and four options, the answer a letter.

Plain format: `Question: ...`, a line `A) ...` for each option to D, `Answer:` -> ` B`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from workbench.models.zoo.corpus import arithmetic
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (
    ("category", 1.5),
    ("odd_one", 1.2),
    ("opposite", 1.0),
    ("largest", 0.8),
    ("letter", 0.8),
    ("sum", 0.7),
)
CATEGORIES = (
    ("animal", "an animal"), ("fruit", "a fruit"), ("vegetable", "a vegetable"), ("flower", "a flower"),
    ("tree", "a tree"), ("color", "a color"), ("clothing", "something to wear"), ("tool", "a tool"),
    ("instrument", "a musical instrument"), ("vehicle", "a vehicle"), ("furniture", "a piece of furniture"),
    ("job", "a job"), ("sport", "a sport"), ("body", "a part of the body"), ("metal", "a metal"),
    ("shape", "a shape"), ("room", "a room"), ("subject", "a school subject"), ("day", "a day of the week"),
    ("month", "a month"), ("city", "a city"), ("country", "a country"), ("drink", "a drink"),
)  # fmt: skip


class Drawn(NamedTuple):
    """A question before its options are shuffled."""

    text: str
    right: str
    wrong: list[str]


class Question(NamedTuple):
    text: str
    options: tuple[str, ...]  # four, in the order shown
    right: str

    @property
    def content(self) -> str | None:
        """The question and its options, whatever their order; a sum is the same content as in arithmetic."""
        if " + " in self.text:
            a, b = map(int, re.findall(r"\d+", self.text))
            return arithmetic.content(arithmetic.Problem(a, "+", b, False))
        return f"{self.text}|{','.join(sorted(self.options))}"


def draw(dice: Dice, kind: str) -> Question:
    """A question of the kind, its options shuffled."""
    text, right, wrong = {
        "category": draw_category, "odd_one": draw_odd_one, "opposite": draw_opposite,
        "largest": draw_largest, "letter": draw_letter, "sum": draw_sum,
    }[kind](dice)  # fmt: skip
    return Question(text, tuple(dice.shuffled((right, *wrong))), right)


def outsiders(dice: Dice, category: str, count: int) -> list[str]:
    """Words of other categories that are not also in this one."""
    own = set(lexicon()[category])
    found: dict[str, None] = {}
    while len(found) < count:
        word = dice.pick(lexicon()[dice.pick(CATEGORIES)[0]])
        if word not in own:
            found[word] = None
    return list(found)


def draw_category(dice: Dice) -> Drawn:
    """One member among words of other categories."""
    name, phrase = dice.pick(CATEGORIES)
    return Drawn(f"Which of these is {phrase}?", dice.pick(lexicon()[name]), outsiders(dice, name, 3))


def draw_odd_one(dice: Dice) -> Drawn:
    """One stranger among three members."""
    name, phrase = dice.pick(CATEGORIES)
    return Drawn(
        f"Which of these is not {phrase}?", outsiders(dice, name, 1)[0], dice.sample(lexicon()[name], 3)
    )


@lru_cache(maxsize=1)
def opposites() -> tuple[tuple[str, ...], ...]:
    """Pairs of opposite words."""
    return tuple(tuple(pair.split("-")) for pair in lexicon()["opposites"])


def draw_opposite(dice: Dice) -> Drawn:
    """A word's opposite among other words."""
    word, right = dice.shuffled(dice.pick(opposites()))
    taken = {other for pair in opposites() if word in pair for other in pair}
    wrong: dict[str, None] = {}
    while len(wrong) < 3:
        other = dice.pick(dice.pick(opposites()))
        if other not in taken:
            wrong[other] = None
    return Drawn(f"What is the opposite of {word}?", right, list(wrong))


def draw_largest(dice: Dice) -> Drawn:
    """The largest or smallest of four numbers."""
    digits = dice.between(2, 4)
    numbers: dict[int, None] = {}
    while len(numbers) < 4:
        numbers[dice.below(10**digits)] = None
    ordered = [str(n) for n in sorted(numbers)]
    if dice.chance(0.5):
        return Drawn("Which number is the largest?", ordered[3], ordered[:3])
    return Drawn("Which number is the smallest?", ordered[0], ordered[1:])


def draw_letter(dice: Dice) -> Drawn:
    """A word that begins with a letter."""
    right = dice.pick(lexicon()["plainword"])
    wrong: dict[str, None] = {}
    while len(wrong) < 3:
        word = dice.pick(lexicon()["plainword"])
        if word[0] != right[0]:
            wrong[word] = None
    return Drawn(f"Which word begins with the letter {right[0].upper()}?", right, list(wrong))


def draw_sum(dice: Dice) -> Drawn:
    """A sum among near misses."""
    a, b = dice.between(10, 99), dice.between(1, 9)
    right = a + b
    near = [right + step for step in (-11, -10, -2, -1, 1, 2, 9, 10, 11) if right + step >= 0]
    return Drawn(f"What is {a} + {b}?", str(right), [str(n) for n in dice.sample(near, 3)])


def content(facts: Question) -> str | None:
    """What makes two questions the same."""
    return facts.content


def render(facts: Question, dice: Dice) -> Rendered:
    """The question, the options, the letter."""
    options = "\n".join(f"{letter}) {option}" for letter, option in zip("ABCD", facts.options, strict=True))
    letter = "ABCD"[facts.options.index(facts.right)]
    lead = dice.pick(("", "", "Choose the right answer. ", "Answer with a letter. "))
    return Rendered(f"Question: {facts.text}\n{options}\nAnswer:", f"{lead}{facts.text}\n{options}", letter)


TASK = Task("choice", KINDS, draw, content, render)
