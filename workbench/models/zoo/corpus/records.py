"""Records: a sentence to a JSON record, and a record to a sentence.

Plain formats: `Sentence: ...` / `Fields: name, age` / `JSON:` -> ` {"name": ..., "age": ...}`, and
`JSON: {...}` / `Sentence:` -> ` ...`, which takes the first wording of its form.
"""

import json
from typing import NamedTuple

from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import Rendered, Task
from workbench.models.zoo.corpus.lexicon import lexicon
from workbench.models.zoo.corpus.record_forms import FORMS, Form, Value

KINDS = (("to_json", 1.5), ("to_sentence", 1.0))


class Record(NamedTuple):
    kind: str
    form: Form
    values: tuple[Value, ...]  # one a field

    @property
    def json(self) -> str:
        return json.dumps(dict(zip(self.form.fields, self.values, strict=True)))


def draw(dice: Dice, kind: str) -> Record:
    """A form and a value for each of its fields."""
    form = dice.pick(FORMS)
    return Record(kind, form, tuple(draw_value(dice, source) for source in form.sources))


def draw_value(dice: Dice, source: str) -> Value:
    """A number (`low-high`), a price (`$`), a truth value (`?`), a full name, a time, a date or a word."""
    if source[0].isdigit():
        low, high = source.split("-")
        return dice.between(int(low), int(high))
    if source == "$":
        return dice.between(1, 99) + dice.pick((0, 0.5, 0.25, 0.75, 0.95))
    if source == "?":
        return dice.chance(0.5)
    if source == "full":
        return f"{dice.pick(lexicon()['name'])} {dice.pick(lexicon()['surname'])}"
    if source == "time":
        return f"{dice.between(1, 12)}:{dice.pick(('00', '15', '30', '45'))}"
    if source == "date":
        return f"{dice.pick(lexicon()['month'])} {dice.between(1, 28)}"
    return dice.pick(lexicon()[source])


def content(facts: Record) -> str:
    """The record, whichever way it is turned."""
    return facts.json


def spoken(record: Record, wording: str) -> str:
    """The record in one wording; a truth value chooses between the halves of `{field?yes|no}`."""
    values = dict(zip(record.form.fields, record.values, strict=True))
    parts = wording.split("{")
    out = [parts[0]]
    for part in parts[1:]:
        slot, rest = part.split("}", 1)
        field, _, halves = slot.partition("?")
        value = values[field]
        out.append(halves.split("|")[0 if value else 1] if halves else say(value))
        out.append(rest)
    return "".join(out)


def say(value: Value) -> str:
    """A value as it stands in a sentence."""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def render(facts: Record, dice: Dice) -> Rendered:
    """The item one way or the other."""
    fields = ", ".join(facts.form.fields)
    if facts.kind == "to_json":
        sentence = spoken(facts, dice.pick(facts.form.wordings))
        ask = dice.pick(("Turn this into JSON with the fields {}: {}", "Give the fields {} as JSON. {}"))
        prompt = f"Sentence: {sentence}\nFields: {fields}\nJSON:"
        return Rendered(prompt, ask.format(fields, sentence), facts.json)
    ask = dice.pick(("Write this record as a sentence: {}", "Say this in one sentence: {}"))
    answer = spoken(facts, facts.form.wordings[0])
    return Rendered(f"JSON: {facts.json}\nSentence:", ask.format(facts.json), answer)


TASK = Task("records", KINDS, draw, content, render)
