"""Expands a text grammar: rules of alternatives into sentences. Knows nothing of plots, tasks or splits.

A grammar file holds `@rule` lines, each followed by one alternative a line (`#` opens a comment). In an
alternative: `[a|b|]` is one of several texts, `<rule>` one alternative of a rule or a word of a word list,
`{slot}` a fact, `{Slot}` the same with a capital, `{a:slot}` and `<a:rule>` with the indefinite article,
`<s:rule>` in the plural, `<x=rule>` a text that is also kept as fact x, `<at_{slot}>` the rule that a fact
names (`@at_` when there is none of that name), `//` a new line. Within one text an alternative is seldom
taken twice.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.lexicon import lexicon

Part: TypeAlias = "str | Choice | Slot | Ref"
Sequence_: TypeAlias = tuple[Part, ...]

T = TypeVar("T")
TOKEN: Final = re.compile(r"[\[\]|]|\{[^}]*\}|<[^>]*>|[^\[\]|{<]+")
BLANKS: Final = re.compile(r" {2,}")
STRAY_BLANK: Final = re.compile(r" (?=[.,;:!?\n])|(?<=\n) ")
SENTENCE_START: Final = re.compile(r"(?:^|[.!?] |\.\" |\n)[a-z]")
VOWEL_SOUND: Final = re.compile(
    r"(?!one\b|us[eu]|uni[cqf]|uku|eu|once\b)[aeiou]|hour|honest|honor|heir", re.I
)
PLURALS: Final = MappingProxyType(
    {
        "sheep": "sheep", "deer": "deer", "moose": "moose", "shrimp": "shrimp", "scissors": "scissors",
        "tongs": "tongs", "pliers": "pliers", "mouse": "mice", "goose": "geese", "wolf": "wolves",
        "foot": "feet", "knife": "knives", "leaf": "leaves", "shelf": "shelves", "scarf": "scarves",
        "tomato": "tomatoes", "potato": "potatoes", "mango": "mangoes", "corn": "ears of corn",
        "iris": "irises", "octopus": "octopuses", "yo-yo": "yo-yos", "pocketknife": "pocketknives",
        "spinach": "spinach", "kale": "kale", "celery": "celery", "garlic": "garlic", "broccoli": "broccoli",
        "asparagus": "asparagus",
    }
)  # fmt: skip


class Choice:
    """One of several texts."""

    __slots__ = ("options",)

    def __init__(self, options: tuple[Sequence_, ...]) -> None:
        self.options = options


class Slot:
    """A fact's place."""

    __slots__ = ("capital", "form", "name")

    def __init__(self, inner: str) -> None:
        self.form, name = split_form(inner)
        self.capital = name[0].isupper() and len(name) > 1
        self.name = name[0].lower() + name[1:] if self.capital else name


class Ref:
    """A rule's place."""

    __slots__ = ("bound", "form", "kept_form", "name", "slot")

    def __init__(self, inner: str) -> None:
        self.form, rest = split_form(inner)
        self.bound, _, rest = rest.rpartition("=")  # the fact that keeps the text, or empty
        self.kept_form, rest = split_form(rest) if self.bound else ("", rest)
        self.name, _, slot = rest.partition("{")
        self.slot = slot.rstrip("}")  # the fact that completes the rule's name, or empty


def split_form(inner: str) -> tuple[str, str]:
    """The form asked for (`a`: with the indefinite article, `s`: plural, or none), and the name."""
    return (inner[0], inner[2:]) if inner[1:2] == ":" else ("", inner)


def with_article(phrase: str) -> str:
    """The phrase behind `a` or `an`."""
    return ("an " if VOWEL_SOUND.match(phrase) else "a ") + phrase


def plural(noun: str) -> str:
    """The noun's plural, as regular English has it but for the nouns of the word lists that differ."""
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith(("man", "woman")):
        return noun[:-2] + "en"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def formed(text: str, form: str) -> str:
    """The text in the form asked for."""
    if form == "a":
        return with_article(text)
    return plural(text) if form == "s" else text


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


class Telling:
    """One text in the making: its facts, its dice, what is written and which alternatives were taken."""

    __slots__ = ("dice", "facts", "out", "taken")

    def __init__(self, facts: Mapping[str, str], dice: Dice) -> None:
        self.facts, self.dice = dict(facts), dice
        self.out: list[str] = []
        self.taken: dict[int, set[int]] = {}  # by the identity of the alternatives

    def pick(self, options: tuple[T, ...]) -> T:
        """One alternative, if possible one that this text does not have yet."""
        taken = self.taken.setdefault(id(options), set())
        at = self.dice.below(len(options))
        for _ in range(3):
            if at not in taken:
                break
            at = self.dice.below(len(options))
        taken.add(at)
        return options[at]


class Grammar:
    """Rules by name, expanded under given facts and dice."""

    def __init__(
        self, rules: Mapping[str, tuple[Sequence_, ...]], words: Mapping[str, tuple[str, ...]]
    ) -> None:
        self.rules = rules
        self.words = words

    def expand(self, rule: str, facts: Mapping[str, str], dice: Dice) -> str:
        """One text of the rule. Raises KeyError for an unknown rule or fact."""
        telling = Telling(facts, dice)
        self.write(telling.pick(self.rules[rule]), telling)
        return tidy("".join(telling.out))

    def write(self, parts: Sequence_, telling: Telling) -> None:
        """Appends the texts of the parts."""
        for part in parts:
            if isinstance(part, str):
                telling.out.append(part)
            elif isinstance(part, Choice):
                self.write(telling.dice.pick(part.options), telling)
            elif isinstance(part, Slot):
                text = formed(telling.facts[part.name], part.form)
                telling.out.append(capitalised(text) if part.capital else text)
            else:
                self.write_ref(part, telling)

    def write_ref(self, ref: Ref, telling: Telling) -> None:
        """Appends one alternative of a rule, or one word of a word list, in the form asked for."""
        name = ref.name
        if ref.slot:
            full = name + telling.facts[ref.slot].replace(" ", "_")
            name = full if full in self.rules else name
        if name not in self.rules:
            text = telling.pick(self.words[name])
        elif ref.form or ref.bound:
            outer, telling.out = telling.out, []
            self.write(telling.pick(self.rules[name]), telling)
            text, telling.out = "".join(telling.out), outer
        else:
            return self.write(telling.pick(self.rules[name]), telling)
        if ref.bound:
            telling.facts[ref.bound] = text = formed(text, ref.kept_form)
        telling.out.append(formed(text, ref.form))
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
