"""Reads the word lists: category -> words. Knows nothing of sentences, tasks or chance.

A word list is a text file: `@name` opens a category, `#` a comment; blanks separate the entries and `_`
stands for a blank inside one. Every list is a tuple in file order without repeats, so that drawing from it is
reproducible.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

FILES = ("lexicon_things.txt", "lexicon_general.txt", "lexicon_tasks.txt")


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Categories of one word list file, each a tuple of distinct entries in file order."""
    found: dict[str, dict[str, None]] = {}
    words: dict[str, None] = {}
    for line in text.splitlines():
        if line.startswith("@"):
            words = found.setdefault(line[1:].strip(), {})
        elif not line.startswith("#"):
            words.update(dict.fromkeys(word.replace("_", " ") for word in line.split()))
    return {name: tuple(entries) for name, entries in found.items()}


@lru_cache(maxsize=1)
def lexicon() -> Mapping[str, tuple[str, ...]]:
    """All categories of all word lists, and the joined ones that several tasks draw from."""
    words: dict[str, tuple[str, ...]] = {}
    for name in FILES:
        words.update(parse((files(__package__) / name).read_text(encoding="utf-8")))
    words["name"] = words["girl"] + words["boy"]
    words["noun"] = nouns(words)
    words["plainword"] = tuple(dict.fromkeys(words["noun"] + words["adjective"] + words["verb"]))
    return MappingProxyType(words)


def nouns(words: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Common nouns of one word, in lower case, from every category that holds things."""
    groups = (
        "animal fruit vegetable food drink flower tree clothing tool instrument vehicle furniture keepsake"
        " material job nature place abstract item body room shape"
    )
    found = (word for group in groups.split() for word in words[group])
    return tuple(dict.fromkeys(word for word in found if word.isalpha() and word.islower()))
