"""Short English stories, from a plot, a hero, a second character, a thing and a place.

Plain format: the story by itself, or `Write a story about a fox and a lantern.`, an empty line, the story.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus import grammar
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (("free", 1.0), ("asked", 1.0))
FILES = (
    "stories_plots_home", "stories_plots_people", "stories_plots_town", "stories_plots_wild", "stories_parts",
    "stories_talk", "stories_places", "stories_kinds", "stories_jobs", "stories_things",
)  # fmt: skip
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "hers": "his", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "hers": "hers", "himself": "herself"},
}


class Facts(NamedTuple):
    """What a story is about: its content, drawn before a word of it is written."""

    plot: str
    hero: str  # name
    hero_kind: str  # "girl", "fox", "baker", ...
    other: str
    other_kind: str
    thing: str
    place: str  # "forest|in"
    pronouns: tuple[str, str]  # keys of PRONOUNS, hero then other
    asked: bool


def draw(dice: Dice, kind: str) -> Facts:
    """A plot and who and what is in it."""
    girl, other_girl = dice.chance(0.5), dice.chance(0.5)
    hero = dice.pick(lexicon()["girl" if girl else "boy"])
    other = dice.pick(lexicon()["girl" if other_girl else "boy"])
    while other == hero:
        other = dice.pick(lexicon()["girl" if other_girl else "boy"])
    plots = [name for name in grammar.load(*FILES).rules if name.startswith("plot_")]
    return Facts(
        dice.pick(plots), hero, draw_kind(dice, girl), other, draw_kind(dice, other_girl),
        dice.pick(lexicon()["keepsake"]), dice.pick(lexicon()["story_place"]),
        ("she" if girl else "he", "she" if other_girl else "he"), kind == "asked",
    )  # fmt: skip


def draw_kind(dice: Dice, girl: bool) -> str:
    """A child, an animal or somebody with a job."""
    child = dice.pick(("girl", "girl", "young woman", "princess", "old woman") if girl else
                      ("boy", "boy", "young man", "prince", "old man"))  # fmt: skip
    sort = dice.weighted((("child", 0.4), ("animal", 0.35), ("job", 0.25)))
    animal = dice.pick(lexicon()["story_animal"])
    animal = "rooster" if animal == "hen" and not girl else animal
    return {"child": child, "animal": animal, "job": dice.pick(lexicon()["job"])}[sort]


def content(facts: Facts) -> str:
    """Plot, characters, thing and place: no two splits share such a combination."""
    return "|".join(map(str, facts[:7]))


def slots(facts: Facts) -> dict[str, str]:
    """The facts as the grammar names them."""
    place, preposition = facts.place.split("|")
    words = {
        "N": facts.hero, "kind": facts.hero_kind, "M": facts.other, "m_kind": facts.other_kind,
        "thing": facts.thing, "place": place, "to_place": f"to the {place}",
        "in_place": f"{preposition} the {place}",
    }  # fmt: skip
    words.update(PRONOUNS[facts.pronouns[0]])
    words.update({f"m_{name}": word for name, word in PRONOUNS[facts.pronouns[1]].items()})
    return words


def companion(facts: Facts, story: str) -> str:
    """What a request names beside the hero: the thing, the second character or the place, if it occurs."""
    place = facts.place.split("|")[0]
    return next((word for word in (facts.thing, facts.other_kind, place) if word in story), "friend")


def render(facts: Facts, dice: Dice) -> Rendered:
    """The story, with or without a line that asks for it."""
    story = grammar.load(*FILES).expand(facts.plot, slots(facts), dice)
    about = f"{grammar.with_article(facts.hero_kind)} and {grammar.with_article(companion(facts, story))}"
    ask = dice.pick(("Tell me a story about {}.", "Write a story about {}.", "Can you tell a story with {}?"))
    prompt = f"Write a story about {about}.\n\n" if facts.asked else ""
    return Rendered(prompt, ask.format(about), story, glue="")


TASK = Task("stories", KINDS, draw, content, render)
