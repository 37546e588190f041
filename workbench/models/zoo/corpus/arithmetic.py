"""Arithmetic: sums and differences up to three digits, products up to two, and products in steps.

Plain format: `Compute: 47 + 85` / `Answer:` -> ` 132`, and with steps
`Compute in steps: 47 * 85` / `Answer:` -> ` 47 * 80 = 3760; 47 * 5 = 235; 3760 + 235 = 3995`.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task

KINDS = (("add2", 1.0), ("sub2", 1.0), ("add3", 1.6), ("sub3", 1.6), ("mul", 2.0), ("steps", 1.6))
WORDS = {"+": "plus", "-": "minus", "*": "times"}
SIGN = {"add": "+", "sub": "-", "mul": "*", "ste": "*"}


class Problem(NamedTuple):
    a: int
    sign: str  # + - *
    b: int
    steps: bool  # a product, one digit of b at a time

    @property
    def value(self) -> int:
        return {"+": self.a + self.b, "-": self.a - self.b, "*": self.a * self.b}[self.sign]


def draw(dice: Dice, kind: str) -> Problem:
    """Operands of at most three digits (add3, sub3: at least one has three), else at most two."""
    sign = SIGN[kind[:3]]
    if kind.endswith("3"):
        a, b = dice.shuffled(
            (dice.between(100, 999), dice.between(100, 999) if dice.chance(0.7) else dice.below(100))
        )
        return Problem(a, sign, b, False)
    if kind == "steps":
        return Problem(dice.between(2, 99), sign, dice.between(11, 99), True)
    # One digit now and then, so that the tables themselves are learnt.
    a, b = (dice.below(10 if dice.chance(0.15) else 100) for _ in range(2))
    return Problem(a, sign, b, False)


def content(problem: Problem) -> str | None:
    """A problem whatever the order of a sum's or product's operands; None for the one-digit tables."""
    if problem.a < 10 and problem.b < 10:
        return None
    a, b = problem.a, problem.b
    return f"{a}-{b}" if problem.sign == "-" else f"{min(a, b)}{problem.sign}{max(a, b)}"


def worked(problem: Problem) -> str:
    """The product digit by digit, ending in the result."""
    a, b = problem.a, problem.b
    tens, ones = b - b % 10, b % 10
    if ones == 0:
        return f"{a} * {b} = {problem.value}"
    return f"{a} * {tens} = {a * tens}; {a} * {ones} = {a * ones}; {a * tens} + {a * ones} = {problem.value}"


def render(problem: Problem, dice: Dice) -> Rendered:
    """The problem in the plain format and as a question."""
    a, sign, b = problem.a, problem.sign, problem.b
    if problem.steps:
        ask = dice.pick(
            ("What is {} * {}? Show the steps.", "Compute {} times {} in steps.", "{} * {}, step by step")
        )
        return Rendered(f"Compute in steps: {a} {sign} {b}\nAnswer:", ask.format(a, b), worked(problem))
    short = f"{a} {sign} {b}"
    ask = dice.pick(
        ("What is {}?", "Compute {}.", "{} = ?", "How much is {}?", "Please work out {}.", "Calculate {}")
    )
    asked = f"{a} {WORDS[sign]} {b}" if dice.chance(0.3) else short
    return Rendered(f"Compute: {short}\nAnswer:", ask.format(asked), str(problem.value))


TASK = Task("arithmetic", KINDS, draw, content, render)
