"""Copying and editing a given text: copy, rename, replace, uppercase, reverse the order of lines.

Plain format: `Text:`, the text, an empty line, `Task: <instruction>`, `Result:` and a line break -> the
edited text.
"""

import re
from typing import NamedTuple

from workbench.models.zoo.corpus import grammar
from workbench.models.zoo.corpus.dice import Dice, digest
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon
from workbench.models.zoo.corpus.retrieval import draw_value

KINDS = (
    ("copy", 1.0),
    ("copy_long", 0.5),
    ("rename", 1.0),
    ("replace", 1.0),
    ("uppercase", 1.0),
    ("reverse", 1.2),
)
# Characters of the text: with about four to a token, prompt and result stay within 2,048 tokens.
LENGTHS = {"copy": (10, 900), "copy_long": (900, 3600), "uppercase": (10, 160), "reverse": (40, 700)}
EDIT_LENGTHS = (40, 600)
DENSITY = {"sentence": 1.0, "words": 0.85, "mixed": 0.6, "code": 0.4}  # characters a token, sentences being 1
INSTRUCTIONS = {
    "copy": (
        "copy the text.",
        ("Copy this text:", "Repeat this text exactly:", "Say this again, word for word:"),
    ),
    "rename": ("change the name {} to {}.", ("Change the name {} to {} in this text:", "Rename {} to {}:")),
    "replace": (
        "replace the word {} with {}.",
        ("Replace the word {} with {} in this text:", "Change {} to {}:"),
    ),
    "uppercase": (
        "write the text in uppercase.",
        ("Write this in uppercase:", "Put this in capital letters:"),
    ),
    "reverse": (
        "reverse the order of the lines.",
        ("Reverse the order of these lines:", "Put the last line first:"),
    ),
}


class Edit(NamedTuple):
    kind: str
    lines: tuple[str, ...]
    old: str  # the name or word to change, else empty
    new: str

    @property
    def result(self) -> str:
        text = "\n".join(self.lines)
        if self.kind in ("rename", "replace"):
            return swap(text, self.old, self.new)
        if self.kind == "reverse":
            return "\n".join(reversed(self.lines))
        return text.upper() if self.kind == "uppercase" else text


def swap(text: str, old: str, new: str) -> str:
    """The text with every whole word `old` replaced."""
    return re.sub(rf"\b{re.escape(old)}\b", lambda _: new, text)


def draw(dice: Dice, kind: str) -> Edit:
    """A text of lines that share a style, and what to change in it."""
    size = dice.log_between(*LENGTHS.get(kind, EDIT_LENGTHS))
    old, new = ("", "")
    if kind == "rename":
        old, new = dice.sample(lexicon()["name"], 2)
    elif kind == "replace":
        old, new = dice.sample(lexicon()["noun"], 2)
    lines = draw_lines(dice, kind, size, old)
    if kind == "reverse":
        lines = lines if len(lines) > 1 else (*lines, draw_line(dice, "words", ""))
        lines = tuple(dict.fromkeys(lines))[:12]
    return Edit("copy" if kind == "copy_long" else kind, lines, old, new)


def draw_lines(dice: Dice, kind: str, size: int, old: str) -> tuple[str, ...]:
    """Lines of about `size` characters together; `old` occurs in them if given."""
    style = dice.weighted((("sentence", 0.5), ("words", 0.25), ("mixed", 0.15), ("code", 0.1)))
    if kind in ("rename", "replace"):
        style = "sentence"
    lines: list[str] = []
    size = int(size * DENSITY[style])
    while sum(map(len, lines)) < size:
        one = dice.pick(("sentence", "words", "code")) if style == "mixed" else style
        lines.append(
            draw_line(dice, one, old if kind == "rename" or not lines or dice.chance(0.5) else "", kind)
        )
    if style != "sentence" or kind == "reverse" or dice.chance(0.3):
        return tuple(lines)
    return (" ".join(lines),)


def draw_line(dice: Dice, style: str, old: str, kind: str = "") -> str:
    """A sentence, a row of words or a row of codes."""
    if style == "words":
        return " ".join(dice.sample(lexicon()["plainword"], dice.between(1, 9)))
    if style == "code":
        return " ".join(
            draw_value(dice, dice.pick(("code", "number", "word"))) for _ in range(dice.between(1, 6))
        )
    name = old if kind == "rename" and dice.chance(0.8) else dice.pick(lexicon()["name"])
    thing = old if kind == "replace" and old else dice.pick(lexicon()["noun"])
    other = dice.pick(lexicon()["name"])
    return grammar.load("sentences").expand("line", {"N": name, "thing": thing, "O": other}, dice)


def content(facts: Edit) -> str:
    """The text, whatever is done to it."""
    return str(digest(*facts.lines))


def render(facts: Edit, dice: Dice) -> Rendered:
    """The text, the instruction, the result."""
    text = "\n".join(facts.lines)
    plain, asks = INSTRUCTIONS[facts.kind]
    ask = dice.pick(asks).format(facts.old, facts.new)
    prompt = f"Text:\n{text}\n\nTask: {plain.format(facts.old, facts.new)}\nResult:\n"
    return Rendered(prompt, f"{ask}\n{text}", facts.result, glue="")


TASK = Task("copying", KINDS, draw, content, render)
