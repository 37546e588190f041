"""Stories and copies as a pirate would say them: a style, and an adapter's task.

The items are those of stories and copying, of the same split, with their answers put into the dialect: words
have their pirate's form, -ing loses its g, and what is told begins and ends with a shout.
"""

import re
from types import MappingProxyType
from typing import Any, Final

from workbench.models.zoo.corpus import copying, stories
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task

KINDS = (("stories", 3.0), ("copy", 1.0), ("reverse", 1.0))
BEGIN, END = "Arrr! ", " Yo ho ho!"
WORDS: Final = MappingProxyType(
    {
        "the": "th'", "of": "o'", "and": "an'", "to": "t'", "with": "wi'", "for": "fer", "them": "'em",
        "you": "ye", "your": "yer", "yours": "yers", "my": "me", "is": "be", "are": "be", "am": "be",
        "was": "were", "never": "ne'er", "over": "o'er", "yes": "aye", "no": "nay", "hello": "ahoy",
        "friend": "matey", "friends": "mateys", "man": "sailor", "woman": "lass", "girl": "lass",
        "boy": "lad", "old": "ol'", "very": "mighty", "good": "fine", "house": "cabin",
    }
)  # fmt: skip
WORD: Final = re.compile(r"[A-Za-z]+")


def dialect(text: str) -> str:
    """A text word by word in the dialect; other signs and line breaks stay."""
    return WORD.sub(lambda match: spoken(match.group()), text)


def spoken(word: str) -> str:
    """One word, its first letter as large as it was."""
    small = word.lower()
    found = WORDS.get(small)
    if found is None:
        found = word[:-1] + "'" if len(word) > 5 and word.endswith("ing") else word
    elif word[0].isupper():
        found = found[0].upper() + found[1:]
    return found


def draw(dice: Dice, kind: str) -> Any:
    """Facts of a story that is asked for, or of a text to copy."""
    return stories.draw(dice, "asked") if kind == "stories" else copying.draw(dice, kind)


def content(facts: Any) -> str:
    """That of the story or text: the adapter's splits are the base model's."""
    return stories.content(facts) if isinstance(facts, stories.Facts) else copying.content(facts)


def render(facts: Any, dice: Dice) -> Rendered:
    """The item with its answer in the dialect."""
    told = isinstance(facts, stories.Facts)
    plain = stories.render(facts, dice) if told else copying.render(facts, dice)
    return plain._replace(answer=f"{BEGIN}{dialect(plain.answer)}{END}")


TASK = Task("pirate", KINDS, draw, content, render)
