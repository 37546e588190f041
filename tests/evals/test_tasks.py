"""Tasks are read to the letter, or refused with file and line; answers are scored by what was said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.evals import Sample, make_task, read_task
from workbench.evals.tasks import is_json, score_text, write_task
from workbench.evals.zoo_tasks import MAKERS, zoo_task
from workbench.models.folder import resolve
from workbench.models.zoo.tokens import FOLDER, Encoder

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


def test_a_task_that_was_written_is_read_again(tmp_path: Path) -> None:
    for name in MAKERS:
        task = zoo_task(name, 2)
        assert read_task(write_task(task, tmp_path / f"{name}.jsonl")) == task


def test_lines_that_disagree_about_their_task_are_named(tmp_path: Path) -> None:
    first = {"prompt": "a", "completion": "b", "metric": "exact", "stop": ["\n"]}
    with pytest.raises(ValueError, match="quiz.jsonl, line 2: it says {'metric': 'json'} of the whole task"):
        read_task(write(tmp_path, first, {"prompt": "a", "completion": "b", "metric": "json"}))
    with pytest.raises(ValueError, match="line 1: 'stop' is not a list"):
        read_task(write(tmp_path, first | {"stop": "\n"}))
    with pytest.raises(ValueError, match="a stop string is empty"):
        make_task("t", "exact", [Sample("a", "b")], "")


# --- tasks of the zoo's generator -----------------------------------------------------------------------


def test_the_files_of_tasks_are_what_the_command_writes(tmp_path: Path) -> None:
    assert main(["eval", "write", str(tmp_path), "-n", "60"]) == 0
    for written in tmp_path.iterdir():
        assert written.read_bytes() == (ROOT / "datasets/evals" / written.name).read_bytes()
    assert len(list(tmp_path.iterdir())) == len(MAKERS)


def test_a_continuation_has_a_context_of_400_tokens_and_choices_of_20() -> None:
    encoder, task = Encoder(FOLDER), zoo_task("continuations", 4)
    for sample in task.samples:
        assert 300 < len(encoder.encode(sample.prompt)) < 450
        assert [14 <= len(encoder.encode(choice)) <= 26 for choice in sample.choices] == [True] * 4


def test_what_is_looked_up_stands_at_its_depth_in_a_context_of_its_length() -> None:
    encoder = Encoder(FOLDER)
    for sample in zoo_task("lookup", 15).samples:
        length, depth = (int(word) for word in sample.kind.split() if word.isdecimal())
        *pairs, _, asked = sample.prompt.splitlines()[1:]
        key = asked.removeprefix("Value of ").removesuffix(":")
        places = [place for place, pair in enumerate(pairs) if pair == f"- {key}:{sample.completion}"]
        assert places == [round(depth / 100 * (len(pairs) - 1))]
        assert 0.85 * length < len(encoder.encode(sample.prompt)) < 1.15 * length


def test_unknown_tasks_and_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no task 'poems': choose among arithmetic, records"):
        zoo_task("poems", 3)
    with pytest.raises(ValueError, match="0 samples measure nothing"):
        zoo_task("lookup", 0)


def test_the_shell_evaluates_a_file_and_goes_on_with_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_task(zoo_task("arithmetic", 4), tmp_path / "arithmetic.jsonl")
    command = ["eval", "run", str(file), "--keep", str(tmp_path / "rows"), "--json"]
    models = ["--model", "zoo/wren-1m", str(resolve("zoo/wren-1m"))]  # one model by two names
    assert main([*command, *models]) == 0
    first = capsys.readouterr().out
    found = json.loads(first.splitlines()[-1])
    assert [row["n"] for row in found["rows"] if row["kind"] == "all"] == [4, 4]
    assert [line["differs"] for line in found["differences"]] == [False]
    assert "no difference seen" in first
    kept = sorted((tmp_path / "rows").iterdir())
    before = [path.read_bytes() for path in kept]
    assert main([*command, *models]) == 0
    assert capsys.readouterr().out == first
    assert [path.read_bytes() for path in kept] == before
