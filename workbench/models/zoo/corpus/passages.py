"""Questions over a short invented passage about two to four people.

Plain format: `Passage: ...` / `Question: ...` / `Answer:` -> ` ...`, the answer in the passage's own words.
"""

from typing import NamedTuple

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.grammar import capitalised, with_article
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon

KINDS = (("fact", 1.5), ("who", 1.2), ("moves", 1.0), ("things", 0.8))


class Attribute(NamedTuple):
    source: str  # word list, or low-high, or `because`
    says: tuple[str, ...]  # sentences about {n}, {v} the value, {av} with its article
    asks: tuple[str, ...]  # questions for the value; the answer is `answer`
    answer: str
    whos: tuple[str, ...]  # questions for the person


ATTRIBUTES = (
    Attribute("place", ("{n} went to the {v}.", "{n} walked to the {v}.", "{n} spent the day at the {v}."),
              ("Where did {n} go?", "Which place did {n} visit?"), "the {v}",
              ("Who went to the {v}?", "Who was at the {v}?")),
    Attribute("item", ("{n} bought {av}.", "At the shop, {n} bought {av}.", "{n} came home with {av}."),
              ("What did {n} buy?", "What did {n} get?"), "{av}", ("Who bought {av}?", "Who got {av}?")),
    Attribute("job", ("{n} works as {av}.", "{n} is {av}.", "{n} wants to become {av}."),
              ("What is the job of {n}?", "What job is named for {n}?"), "{v}",
              ("Who is connected with the job of {v}?",)),
    Attribute("city", ("{n} lives in {v}.", "{n} comes from {v}.", "The home of {n} is in {v}."),
              ("Which city is {n} from?", "Where does {n} live?"), "{v}",
              ("Who lives in {v}?", "Who is from {v}?")),
    Attribute("color", ("{n} wore a {v} coat.", "The coat of {n} was {v}.", "{n} had a {v} coat on."),
              ("What color was the coat of {n}?",), "{v}", ("Who had a {v} coat?", "Whose coat was {v}?")),
    Attribute("day", ("{n} arrived on {v}.", "On {v}, {n} arrived.", "{n} came on {v}."),
              ("When did {n} arrive?", "On which day did {n} come?"), "on {v}", ("Who arrived on {v}?",)),
    Attribute("animal", ("{n} has {av}.", "{n} takes care of {av}.", "{n} keeps {av} as a pet."),
              ("Which animal does {n} have?", "What pet does {n} keep?"), "{av}", ("Who has {av}?",)),
    Attribute("2-99", ("{n} collected {v} stamps.", "{n} has {v} stamps.",
                       "There are {v} stamps in the album of {n}."),
              ("How many stamps does {n} have?",), "{v}", ("Who has {v} stamps?",)),
    Attribute("food", ("{n} likes {v} best.", "For lunch, {n} had {v}.", "{n} cooked {v}."),
              ("What food is named for {n}?", "Which dish goes with {n}?"), "{v}",
              ("Who goes with the {v}?",)),
    Attribute("instrument", ("{n} plays the {v}.", "{n} practices the {v} every day.",
                             "{n} is learning the {v}."),
              ("Which instrument does {n} play?",), "the {v}", ("Who plays the {v}?",)),
    Attribute("because", ("{n} stayed at home because {v}.", "Because {v}, {n} stayed at home."),
              ("Why did {n} stay at home?",), "because {v}", ("Who stayed at home because {v}?",)),
)  # fmt: skip
REASONS = (
    "it was raining", "the bus was late", "the door was stuck", "the car had broken down",
    "there was too much snow", "a guest was coming", "the baby was asleep", "the road was closed",
    "there was work to do", "the dog was ill",
    "the train did not run", "the storm had begun", "the shoes were wet", "dinner was in the oven",
)  # fmt: skip
FILLERS = (
    "It was a {weather} day.", "Nobody was in a hurry.", "The {place} was quiet.",
    "A {animal} was seen nearby.", "Everyone had a good time.", "The {season} had just begun.",
    "Later there was {food} for all.", "It was {month}.",
)  # fmt: skip
PLACES = ("kitchen", "garden", "attic", "cellar", "garage", "hall", "library", "bedroom", "bathroom", "study",
          "park", "market", "school", "office", "barn", "stable", "workshop", "pantry")  # fmt: skip
SPOTS = (
    "in the {room}",
    "on the {furniture}",
    "under the {furniture}",
    "behind the {furniture}",
    "near the {place}",
)


class Passage(NamedTuple):
    text: str
    # (question, answer): the first is the item, the rest follow in training
    questions: tuple[tuple[str, str], ...]


def draw(dice: Dice, kind: str) -> Passage:
    """A passage with its questions."""
    if kind == "moves":
        return draw_moves(dice)
    if kind == "things":
        return draw_things(dice)
    return draw_people(dice, kind == "who")


def draw_people(dice: Dice, who: bool) -> Passage:
    """Two to four people, the same attributes for each so that every value has rivals."""
    people = draw_names(dice, dice.between(2, 4))
    attributes = dice.sample(ATTRIBUTES, dice.between(1, 3))
    sentences: list[str] = []
    facts: list[tuple[Attribute, str, str]] = []
    columns = [draw_values(dice, attribute.source, len(people)) for attribute in attributes]
    for row, (name, pronoun) in enumerate(people):
        for column, attribute in enumerate(attributes):
            value = columns[column][row]
            again = bool(column) and dice.chance(0.6)
            says = dice.pick(attribute.says)
            subject = pronoun if again and "of {n}" not in says else name  # never "of he"
            sentences.append(capitalised(fill(says, subject, value)))
            facts.append((attribute, name, value))
    if dice.chance(0.3):
        sentences = fillers(dice) + sentences
    asked = [
        ask(dice, *fact, who if i == 0 else dice.chance(0.5))
        for i, fact in enumerate(dice.shuffled(facts)[:3])
    ]
    return Passage(" ".join(sentences), tuple(asked))


def draw_names(dice: Dice, count: int) -> list[tuple[str, str]]:
    """Distinct names with their pronouns."""
    names = {name: ("she" if girl else "he") for girl, name in (draw_name(dice) for _ in range(count * 3))}
    return list(names.items())[:count]


def draw_name(dice: Dice) -> tuple[bool, str]:
    """Whether it is a girl's name, and the name."""
    girl = dice.chance(0.5)
    return girl, dice.pick(lexicon()["girl" if girl else "boy"])


def draw_values(dice: Dice, source: str, count: int) -> list[str]:
    """Distinct values of an attribute."""
    if source == "because":
        return dice.sample(REASONS, count)
    if source[0].isdigit():
        low, high = map(int, source.split("-"))
        return [str(n) for n in dice.sample(range(low, high + 1), count)]
    return dice.sample(lexicon()[source], count)


def fill(template: str, name: str, value: str) -> str:
    """A template with the person and the value in place."""
    return template.format(n=name, v=value, av=with_article(value))


def ask(dice: Dice, attribute: Attribute, name: str, value: str, who: bool) -> tuple[str, str]:
    """A question for the person or for the value, with its answer."""
    if who:
        return fill(dice.pick(attribute.whos), name, value), name
    return fill(dice.pick(attribute.asks), name, value), fill(attribute.answer, name, value)


def fillers(dice: Dice) -> list[str]:
    """One or two sentences that answer nothing."""
    found = dice.sample(FILLERS, dice.between(1, 2))
    words = {
        key: dice.pick(lexicon()[key]) for key in ("weather", "place", "animal", "season", "food", "month")
    }
    return [sentence.format(**words) for sentence in found]


def draw_moves(dice: Dice) -> Passage:
    """People move about; where is one of them at the end?"""
    people = [name for name, _ in draw_names(dice, dice.between(2, 3))]
    where: dict[str, str] = {}
    sentences: list[str] = []
    for step in range(dice.between(3, 7)):
        name = people[step] if step < len(people) else dice.pick(people)
        place = dice.pick([place for place in PLACES if place != where.get(name)])
        verb = dice.pick(("went to", "walked to", "moved to", "ran to", "hurried to"))
        sentences.append(f"{'Then ' if name in where and dice.chance(0.5) else ''}{name} {verb} the {place}.")
        where[name] = place
    asked = [
        (f"Where is {name} now?", f"in the {where[name]}")
        for name in dice.shuffled([n for n in people if n in where])
    ]
    return Passage(" ".join(sentences), tuple(asked))


def draw_things(dice: Dice) -> Passage:
    """Things lie in places; where is one, or what lies there?"""
    things = dice.sample(lexicon()["item"], dice.between(3, 6))
    spots: dict[str, None] = {}
    while len(spots) < len(things):
        words = {key: dice.pick(lexicon()[key]) for key in ("room", "furniture", "place")}
        spots[dice.pick(SPOTS).format(**words)] = None
    pairs = list(zip(things, spots, strict=True))
    says = ("The {} is {}.", "The {} lies {}.", "You will find the {} {}.", "Somebody left the {} {}.")
    sentences = [dice.pick(says).format(thing, spot) for thing, spot in pairs]
    asked = [
        (f"Where is the {thing}?", spot) if dice.chance(0.6) else (f"What is {spot}?", f"the {thing}")
        for thing, spot in dice.shuffled(pairs)[:3]
    ]
    return Passage(" ".join(sentences), tuple(asked))


def content(facts: Passage) -> str:
    """The passage, whatever is asked."""
    return facts.text


def render(facts: Passage, dice: Dice) -> Rendered:
    """The passage and a question."""
    question, answer = facts.questions[0]
    ask_for = dice.pick(("{}\n\n{}", "Read this: {}\n{}", "{}\nQuestion: {}", "Passage: {}\n\n{}"))
    more = tuple((f"\nQuestion: {q}\nAnswer:", f" {a}") for q, a in facts.questions[1:])
    prompt = f"Passage: {facts.text}\nQuestion: {question}\nAnswer:"
    return Rendered(prompt, ask_for.format(facts.text, question), answer, more=more)


TASK = Task("passages", KINDS, draw, content, render, stop="\n")
