"""Sentiment: is an invented review positive or negative?

Plain format: `Review: ...` / `Sentiment:` -> ` positive` or ` negative`. The last clause of a mixed review,
or most of its clauses, decide; reviews that balance are not made.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus import grammar
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (("plain", 1.0), ("mixed", 1.0))


class Review(NamedTuple):
    positive: bool
    text: str


def draw(dice: Dice, kind: str) -> Review:
    """A review: clauses of one sentiment, or one against it and then a verdict that settles it."""
    positive = dice.chance(0.5)
    word = "good" if positive else "bad"
    facts = {"item": dice.pick(lexicon()["reviewed"])}
    text = grammar.load("reviews").expand(f"{kind}_{word}", facts, dice)
    return Review(positive, text)


def content(facts: Review) -> str:
    """The review."""
    return facts.text


def render(facts: Review, dice: Dice) -> Rendered:
    """The review and its label."""
    label = "positive" if facts.positive else "negative"
    asks = (
        "Is this review positive or negative? {}",
        "Classify the sentiment of this review as positive or negative: {}",
        "{}\n\nPositive or negative?",
    )
    return Rendered(f"Review: {facts.text}\nSentiment:", dice.pick(asks).format(facts.text), label)


TASK = Task("sentiment", KINDS, draw, content, render)
