"""The corpus: the same everywhere, right in what it claims, and split without a shared item."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path

import pytest

from workbench.models.zoo.corpus import grammar, stories, tasks
from workbench.models.zoo.corpus.dice import Dice
from workbench.models.zoo.corpus.item import SPLITS, Item, draw_for, split_of
from workbench.models.zoo.corpus.lexicon import lexicon

HERE = Path(__file__).resolve().parents[2]
DIGEST = """
from tests.zoo.test_corpus import digest_of_a_sample
print(digest_of_a_sample())
"""
# Signs of the grammar files that must not reach a text, blanks out of place, and a doubled word.
BLEMISH = re.compile(r"[<>{}\[\]|]|  | [.,;!?]|,,|\b(\w+) \1\b")
WRONG_ARTICLE = re.compile(
    r"\b[Aa] (?=[aeiou])(?!one\b|us[eu]|uni|uku|eu)\w+|\b[Aa]n (?=[^aeiou\W])(?!ho|heir)\w+"
)


def digest_of_a_sample() -> str:
    """A digest of items of every task in both splits."""
    texts = [
        tasks.make(name, split, 11, i).text for name in tasks.NAMES for split in SPLITS for i in range(5)
    ]
    return blake2b("\0".join(texts).encode()).hexdigest()


def parts_of(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    assert found is not None, text
    return found.groups()


def sample(name: str, kind: str, count: int = 40) -> list[Item]:
    return [tasks.make(name, "train", 5, index, kind) for index in range(count)]


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_the_corpus_is_the_same_in_every_process(hash_seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True, cwd=HERE,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE)},
    )  # fmt: skip
    assert done.stdout.strip() == digest_of_a_sample()


def test_an_item_depends_on_its_own_number_alone() -> None:
    for name in tasks.NAMES:
        alone = tasks.make(name, "train", 1, 7)
        stream = tasks.stream(name, "train", 1)
        assert [next(stream) for _ in range(8)][7] == alone
        assert tasks.make(name, "train", 2, 7) != alone


@pytest.mark.parametrize("task", tasks.PLAIN, ids=lambda task: task.name)
def test_a_drawn_item_belongs_to_the_split_it_was_drawn_for(task: tasks.Task) -> None:
    for split in SPLITS:
        for kind, _ in task.kinds:
            for index in range(20):
                facts = draw_for(task, split, kind, Dice("split", split, kind, index))
                assert split_of(task.content(facts)) == split


@pytest.mark.parametrize("task", tasks.PLAIN, ids=lambda task: task.name)
def test_no_heldout_prompt_occurs_in_training(task: tasks.Task) -> None:
    # A request names only two of a story's facts, so there the story itself is compared.
    part = "completion" if task.name == "stories" else "prompt"
    held = {getattr(tasks.make(task.name, "heldout", 3, index), part) for index in range(100)}
    seen = {getattr(tasks.make(task.name, "train", 3, index), part) for index in range(1000)}
    assert not held & seen


def test_a_swapped_sum_and_a_shuffled_list_are_in_the_split_of_the_original() -> None:
    dice = Dice("swap")
    arithmetic, sorting = tasks.BY_NAME["arithmetic"], tasks.BY_NAME["sorting"]
    for _ in range(50):
        problem = arithmetic.draw(dice, "add3")
        assert arithmetic.content(problem) == arithmetic.content(problem._replace(a=problem.b, b=problem.a))
        unsorted = sorting.draw(dice, "descending")
        turned = unsorted._replace(way="ascending", entries=unsorted.entries[::-1])
        assert sorting.content(unsorted) == sorting.content(turned)


@pytest.mark.parametrize("kind", tasks.kinds_of("arithmetic"))
def test_arithmetic_is_right(kind: str) -> None:
    for item in sample("arithmetic", kind):
        a, sign, b = parts_of(r"(\d+) ([-+*]) (\d+)", item.prompt)
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        assert item.completion.rsplit(" ", 1)[-1] == str(value)
        for left, right in re.findall(r"([^;=]+) = (\d+)", item.completion):  # the steps, each by itself
            x, sign, y = left.split()
            assert {"+": int(x) + int(y), "*": int(x) * int(y)}[sign] == int(right)


@pytest.mark.parametrize("kind", tasks.kinds_of("retrieval"))
def test_the_retrieved_value_stands_behind_its_key(kind: str) -> None:
    for item in sample("retrieval", kind, 15):
        pairs = dict(line[2:].split(": ", 1) for line in item.prompt.splitlines() if line.startswith("- "))
        key = parts_of(r"Value of (.+):\Z", item.prompt)[0]
        assert item.completion == f" {pairs[key]}"
        assert len(pairs) == item.prompt.count("\n- "), "a key occurs twice"


@pytest.mark.parametrize("kind", tasks.kinds_of("sorting"))
def test_sorted_lists_are_sorted(kind: str) -> None:
    for item in sample("sorting", kind):
        given = parts_of(r": (.*)\n", item.prompt)[0].split(", ")
        key = str if kind == "alphabetically" else int
        assert item.completion.strip().split(", ") == sorted(given, key=key, reverse=kind == "descending")


@pytest.mark.parametrize("kind", tasks.kinds_of("copying"))
def test_edits_do_what_they_say(kind: str) -> None:
    met = 0
    for item in sample("copying", kind, 15):
        text, rest = item.prompt.removeprefix("Text:\n").rsplit("\n\nTask: ", 1)
        task = rest.removesuffix(".\nResult:\n")
        if kind in ("rename", "replace"):
            old, new = parts_of(r"(?:name|word) (\S+) (?:to|with) (\S+)\Z", task)
            words = re.split(r"(\W+)", text)
            met += old in words
            expected = "".join(new if word == old else word for word in words)
        else:
            expected = {"uppercase": text.upper(), "reverse": "\n".join(text.split("\n")[::-1])}.get(
                kind, text
            )
        assert item.completion == expected
    assert met >= 10 or kind not in ("rename", "replace"), "there is mostly something to change"


def test_records_hold_what_their_sentence_says() -> None:
    for kind in tasks.kinds_of("records"):
        for item in sample("records", kind):
            record = json.loads(parts_of(r"(\{.*\})", item.text)[0])
            sentence = re.sub(r"\{.*\}", "", item.text)
            for value in record.values():
                for part in value if isinstance(value, list) else [value]:
                    assert isinstance(part, bool) or part is None or str(part).lower() in sentence.lower()


def test_a_choice_names_one_of_four_different_options() -> None:
    for kind in tasks.kinds_of("choice"):
        for item in sample("choice", kind):
            options = dict(re.findall(r"^([A-D])\) (.+)$", item.prompt, re.M))
            assert len(set(options.values())) == 4
            assert item.completion.strip() in options


def test_the_answer_of_a_passage_question_comes_from_the_passage() -> None:
    for kind in tasks.kinds_of("passages"):
        for item in sample("passages", kind):
            answer = re.sub(r"^(the|a|an|in the|on the|because|on) ", "", item.completion.strip())
            assert answer.lower() in item.prompt.lower() or answer == "nobody"


def test_stories_use_several_thousand_words() -> None:
    words = {
        word
        for index in range(4000)
        for word in re.findall(r"[a-z]+", tasks.make("stories", "train", 1, index).completion.lower())
    }
    assert len(words) >= 4000


def test_stories_are_clean_english_on_the_surface() -> None:
    for index in range(1500):
        text = tasks.make("stories", "train", 2, index).text
        assert not BLEMISH.search(text), text
        assert not WRONG_ARTICLE.search(text), text
        assert text.count('"') % 2 == 0, text
        assert text[-1] in '."!?', text


def test_a_requested_story_has_what_was_asked_for() -> None:
    for index in range(300):
        item = tasks.make("stories", "train", 4, index, "asked")
        hero, other = parts_of(r"\AWrite a story about an? (.+) and an? (.+)\.\n\n\Z", item.prompt)
        assert hero in item.completion
        assert other in item.completion or other == "friend"


def test_every_rule_that_a_story_may_reach_is_there() -> None:
    found = grammar.load(*stories.FILES)
    parts = [part for options in found.rules.values() for option in options for part in option]
    while parts:
        part = parts.pop()
        if isinstance(part, grammar.Choice):
            parts += [inner for option in part.options for inner in option]
        elif isinstance(part, grammar.Ref):
            assert part.name in found.rules or part.name in found.words, part.name
    kinds = [*lexicon()["story_animal"], *lexicon()["job"]]
    named = [f"of_{kind}" for kind in kinds] + [f"about_{thing}" for thing in lexicon()["keepsake"]]
    named += [f"at_{place.split('|')[0]}" for place in lexicon()["story_place"]]
    assert not [name for name in named if name.replace(" ", "_") not in found.rules]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [("fox", "foxes"), ("wolf", "wolves"), ("sheep", "sheep"), ("mouse", "mice"), ("berry", "berries"),
     ("key", "keys"), ("fisherman", "fishermen"), ("daisy", "daisies"), ("watch", "watches"),
     ("potato", "potatoes")],
)  # fmt: skip
def test_plurals(noun: str, expected: str) -> None:
    assert grammar.plural(noun) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("owl", "an owl"), ("hour", "an hour"), ("ukulele", "a ukulele"), ("unusual day", "an unusual day"),
     ("uniform", "a uniform"), ("old fox", "an old fox"), ("one-eyed cat", "a one-eyed cat")],
)  # fmt: skip
def test_articles(phrase: str, expected: str) -> None:
    assert grammar.with_article(phrase) == expected


def test_an_unknown_task_kind_or_split_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'poetry': choose one of stories, .*chat"):
        tasks.make("poetry", "train", 0, 0)
    with pytest.raises(ValueError, match=r"unknown kind 'div' of task 'arithmetic': choose one of add2"):
        tasks.make("arithmetic", "train", 0, 0, "div")
    with pytest.raises(ValueError, match="unknown split 'test': choose train or heldout"):
        tasks.make("arithmetic", "test", 0, 0)  # type: ignore[arg-type]


def test_a_bracket_left_open_in_a_grammar_is_refused() -> None:
    with pytest.raises(ValueError, match="never closed"):
        grammar.parse_rules("@rule\nthe [red|blue house")
    with pytest.raises(ValueError, match="close every"):
        grammar.parse_rules("@rule\nthe red] house")
