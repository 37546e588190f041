"""Expands a text grammar: rules of alternatives into sentences. Knows nothing of plots, tasks or splits.

A grammar file holds `@rule` lines, each followed by one alternative a line (`#` opens a comment). In an alternative:
`[a|b|]` is one of several texts, `<rule>` one alternative of a rule or a word of a word list, `{slot}` a fact,
`{Slot}` the same with a capital, `{a:slot}` and `<a:rule>` with the indefinite article, `//` a new line.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Final, TypeAlias

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.lexicon import lexicon

Part: TypeAlias = "str | Choice | Slot | Ref"
Sequence_: TypeAlias = tuple[Part, ...]

TOKEN: Final = re.compile(r"[\[\]|]|\{[^}]*\}|<[^>]*>|[^\[\]|{<]+")
BLANKS: Final = re.compile(r" {2,}")
STRAY_BLANK: Final = re.compile(r" (?=[.,;:!?\n])|(?<=\n) ")
SENTENCE_START: Final = re.compile(r"(?:^|[.!?] |\.\" |\n)[a-z]")
VOWEL_SOUND: Final = re.compile(
    r"(?!one\b|us[eu]|uni[cqf]|uku|eu|once\b)[aeiou]|hour|honest|honor|heir", re.I
)


class Choice:
    """One of several texts."""

    __slots__ = ("options",)

    def __init__(self, options: tuple[Sequence_, ...]) -> None:
        self.options = options


class Slot:
    """A fact's place."""

    __slots__ = ("article", "capital", "name")

    def __init__(self, inner: str) -> None:
        self.article, name = split_article(inner)
        self.capital = name[0].isupper() and len(name) > 1
        self.name = name[0].lower() + name[1:] if self.capital else name


class Ref:
    """A rule's place."""

    __slots__ = ("article", "name")

    def __init__(self, inner: str) -> None:
        self.article, self.name = split_article(inner)


def split_article(inner: str) -> tuple[bool, str]:
    """Whether the name asks for an indefinite article, and the name."""
    return (True, inner[2:]) if inner.startswith("a:") else (False, inner)


def with_article(phrase: str) -> str:
    """The phrase behind `a` or `an`."""
    return ("an " if VOWEL_SOUND.match(phrase) else "a ") + phrase


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def tidy(text: str) -> str:
    """The text without the blanks that empty options leave behind, every sentence opening with a capital."""
    text = STRAY_BLANK.sub("", BLANKS.sub(" ", text)).strip()
    return SENTENCE_START.sub(lambda found: found.group().upper(), text)


def parse_alternative(text: str) -> Sequence_:
    """One alternative as parts."""
    tokens = TOKEN.findall(text.replace(" // ", "\n").replace("//", "\n"))
    parts, rest = parse_parts(tokens, 0)
    if rest != len(tokens):
        raise ValueError(f"unbalanced brackets in grammar line {text!r}: close every [")
    return parts


def parse_parts(tokens: list[str], at: int) -> tuple[Sequence_, int]:
    """Parts up to a closing bracket, a bar or the end, and where that is."""
    parts: list[Part] = []
    while at < len(tokens) and tokens[at] not in ("]", "|"):
        token = tokens[at]
        at += 1
        if token == "[":
            choice, at = parse_choice(tokens, at)
            parts.append(choice)
        elif token[0] == "{":
            parts.append(Slot(token[1:-1]))
        elif token[0] == "<":
            parts.append(Ref(token[1:-1]))
        else:
            parts.append(token)
    return tuple(parts), at


def parse_choice(tokens: list[str], at: int) -> tuple[Choice, int]:
    """The options of a bracket that has just been opened, and the place behind it."""
    options: list[Sequence_] = []
    while True:
        parts, at = parse_parts(tokens, at)
        options.append(parts)
        if at == len(tokens):
            raise ValueError(f"a [ is never closed in {''.join(tokens)!r}")
        at += 1
        if tokens[at - 1] == "]":
            return Choice(tuple(options)), at


class Grammar:
    """Rules by name, expanded under given facts and dice."""

    def __init__(
        self, rules: Mapping[str, tuple[Sequence_, ...]], words: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.rules = rules
        self.words = words

    def expand(self, rule: str, facts: Mapping[str, str], dice: Dice) -> str:
        """One text of the rule. Raises KeyError for an unknown rule or fact."""
        out: list[str] = []
        self.write(dice.pick(self.rules[rule]), facts, dice, out)
        return tidy("".join(out))

    def write(self, parts: Sequence_, facts: Mapping[str, str], dice: Dice, out: list[str]) -> None:
        """Appends the texts of the parts."""
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part, Choice):
                self.write(dice.pick(part.options), facts, dice, out)
            elif isinstance(part, Slot):
                text = facts[part.name]
                text = with_article(text) if part.article else text
                out.append(capitalised(text) if part.capital else text)
            else:
                self.write_ref(part, facts, dice, out)

    def write_ref(self, ref: Ref, facts: Mapping[str, str], dice: Dice, out: list[str]) -> None:
        """Appends one alternative of a rule, or one word of a word list."""
        if ref.name in self.rules:
            if not ref.article:
                return self.write(dice.pick(self.rules[ref.name]), facts, dice, out)
            inner: list[str] = []
            self.write(dice.pick(self.rules[ref.name]), facts, dice, inner)
            out.append(with_article("".join(inner)))
        else:
            word = dice.pick(self.words[ref.name])
            out.append(with_article(word) if ref.article else word)
        return None


def parse_rules(text: str) -> dict[str, tuple[Sequence_, ...]]:
    """The rules of one grammar file."""
    found: dict[str, list[Sequence_]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("@"):
            name = line[1:].strip()
            found.setdefault(name, [])
        elif line.strip() and not line.startswith("#"):
            found[name].append(parse_alternative(line.strip()))
    return {rule: tuple(options) for rule, options in found.items()}


@lru_cache(maxsize=8)
def load(*names: str) -> Grammar:
    """The grammar of the named files together (`stories_plots` for grammar/stories_plots.txt)."""
    rules: dict[str, tuple[Sequence_, ...]] = {}
    for name in names:
        source = files(__package__) / "grammar" / f"{name}.txt"
        for rule, options in parse_rules(source.read_text(encoding="utf-8")).items():
            rules[rule] = rules.get(rule, ()) + options
    return Grammar(rules, lexicon())
