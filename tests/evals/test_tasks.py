"""Tasks are read to the letter, or refused with file and line; answers are scored by what was said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.evals import Sample, make_task, read_task
from workbench.evals.tasks import is_json, score_text

ROOT = Path(__file__).parents[2]


def write(folder: Path, *lines: object) -> Path:
    path = folder / "quiz.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_line_is_a_sample(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"prompt": "a", "completion": "b", "kind": "k"}, "", {"prompt": "c", "completion": "d"}
    )
    task = read_task(path)
    assert (task.name, task.metric) == ("quiz", "exact")
    assert task.samples == (Sample("a", "b", "k"), Sample("c", "d"))
    assert len(read_task(path, limit=1).samples) == 1


def test_lines_with_choices_are_scored_by_them(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "a", "completion": "x", "choices": ["x", "y"]})
    assert read_task(path).metric == "choice"
    assert read_task(path, "exact").metric == "exact"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2"),
        ([1], "line 2: it is not a JSON object"),
        ({"prompt": "a"}, "line 2: 'completion' is missing"),
        ({"prompt": "a", "completion": ""}, "line 2: 'completion' is empty"),
        ({"prompt": 3, "completion": "b"}, "line 2: 'prompt' is missing, or no text"),
        ({"prompt": "a", "completion": "b", "answer": "c"}, "line 2: unknown column 'answer'"),
        ({"prompt": "a", "completion": "b", "choices": "bc"}, "line 2: 'choices' is not a list"),
        ({"prompt": "a", "completion": "b", "choices": ["b", "b"]}, "line 2: two of the choices"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: object, said: str) -> None:
    path = write(tmp_path, {"prompt": "a", "completion": "b"}, line)
    with pytest.raises(ValueError, match=f"quiz.jsonl, {said}"):
        read_task(path)


def test_empty_tasks_and_unknown_measures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task 'quiz' is empty"):
        read_task(write(tmp_path))
    with pytest.raises(ValueError, match="no metric 'bleu': choose among exact, choice"):
        make_task("t", "bleu", [Sample("a", "b")])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample 0: 'b' is not among its choices"):
        make_task("t", "choice", [Sample("a", "b", choices=("c",))])
    with pytest.raises(ValueError, match="sample 0: its completion is not a JSON object"):
        make_task("t", "json", [Sample("a", "[1]")])


def test_the_projects_own_samples_are_tasks() -> None:
    found = [read_task(path) for path in sorted((ROOT / "datasets/zoo").glob("*.jsonl"))]
    assert len(found) > 5
    assert all(len(task.samples) == 50 for task in found)


def test_an_exact_answer_is_one_to_the_letter_but_for_blanks_around_it() -> None:
    assert score_text("exact", " yes\n", "yes") == 1
    assert score_text("exact", "Yes", "yes") == 0
    assert score_text("exact", "yes yes", "yes") == 0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"a": 1, "b": "x"}', 1.0),
        (' {"b": "x", "a": 1, "c": 0}\n', 1.0),
        ('{"a": 1, "b": "y"}', 0.5),
        ('{"a": true}', 0.0),
        ("[1]", 0.0),
        ('{"a": 1, "b": ', 0.0),
    ],
)
def test_a_json_answer_is_scored_by_its_fields(answer: str, score: float) -> None:
    assert score_text("json", answer, '{"a": 1, "b": "x"}') == score


def test_valid_json_is_an_object() -> None:
    assert is_json('{"a": []}')
    assert not is_json("3")
    assert not is_json('{"a"')
