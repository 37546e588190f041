"""Retrieval: the value that belongs to a key in a list of up to 100 pairs.

Plain format: `Pairs:`, a line `- key: value` for each pair, an empty line, `Value of key:` -> ` value`.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus.dice import Dice, digest
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (("pairs10", 0.4), ("pairs30", 0.3), ("pairs100", 0.3))
RANGES = {"pairs10": (2, 10), "pairs30": (11, 30), "pairs100": (31, 100)}
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


class Pairs(NamedTuple):
    pairs: tuple[tuple[str, str], ...]
    asked: tuple[int, ...]  # which pairs are asked for: the first is the item, the others follow in training


def draw(dice: Dice, kind: str) -> Pairs:
    """Distinct keys (words, names or codes), values of one sort (numbers, words or codes)."""
    count = dice.between(*RANGES[kind])
    keys = draw_keys(dice, count)
    style = dice.weighted((("number", 0.55), ("word", 0.3), ("code", 0.15)))
    pairs = tuple((key, draw_value(dice, style)) for key in keys)
    return Pairs(pairs, tuple(dice.sample(range(count), min(count, 1 + count // 8))))


def draw_keys(dice: Dice, count: int) -> list[str]:
    """Distinct keys of one sort."""
    style = dice.weighted(
        (("noun", 0.55), ("plainword", 0.2), ("name", 0.15), ("city", 0.05), ("code", 0.05))
    )
    if style == "code":
        return list(dict.fromkeys(draw_value(dice, "code") for _ in range(count * 2)))[:count]
    words = lexicon()[style]
    return dice.sample(words if len(words) >= count else lexicon()["noun"], count)


def draw_value(dice: Dice, style: str) -> str:
    """A number of one to four digits, a word, or a code such as K4-27."""
    if style == "number":
        return str(dice.below(10 ** dice.between(1, 4)))
    if style == "word":
        return dice.pick(lexicon()["plainword"])
    return f"{dice.pick(LETTERS)}{dice.below(10)}-{dice.between(10, 99)}"


def content(facts: Pairs) -> str:
    """The list itself and the key asked for."""
    return f"{digest(facts.pairs)}:{facts.asked[0]}"


def render(facts: Pairs, dice: Dice) -> Rendered:
    """The list, then the key."""
    body = "\n".join(f"- {key}: {value}" for key, value in facts.pairs)
    key, value = facts.pairs[facts.asked[0]]
    ask = dice.pick(("What is the value of {}?", "Which value belongs to {}?", "Look up {}.", "Value of {}?"))
    more = tuple((f"\nValue of {facts.pairs[i][0]}:", f" {facts.pairs[i][1]}") for i in facts.asked[1:])
    return Rendered(
        f"Pairs:\n{body}\n\nValue of {key}:", f"Pairs:\n{body}\n\n{ask.format(key)}", value, more=more
    )


TASK = Task("retrieval", KINDS, draw, content, render, stop="\n")
