"""`workbench eval zoo`: the engine's answers, judged as the training judges, in rows that add up."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from workbench.__main__ import main
from workbench.evals import zoo
from workbench.models.zoo import export, registry, score, tokens
from workbench.models.zoo.corpus import tasks

NAMES = ("sorting", "retrieval", "chat")


def test_the_engine_scores_as_the_training_model_does() -> None:
    # float32 both, so greedy answers differ only where two logits are equal to the last bits
    folder = registry.path(registry.DEFAULT)
    found = zoo.measure(folder, 6, names=("sorting", "choice", "passages"), device="cpu", bar=False)
    model, encoder = export.load(folder), tokens.Encoder(folder)
    for one in found.scores:
        pairs = score.encoded(score.held_out(one.task, one.kind, one.n), encoder, 2048)
        assert score.one_kind(model, encoder, one.task, one.kind, pairs) == one


def test_perplexity_is_that_of_transformers(trained: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    found = zoo.measure(trained, 3, names=("stories",), device="cpu", bar=False)
    model = AutoModelForCausalLM.from_pretrained(str(trained), dtype=torch.float32).eval()
    for one in found.scores:
        loss, count = 0.0, 0
        for item in score.held_out(one.task, one.kind, 2):
            ids = score.encode(item, tokens.Encoder(trained))
            if len(ids.prompt) + len(ids.answer) + 1 > 256:
                continue  # the toy's context
            labels = torch.tensor([[-100] * len(ids.prompt) + ids.answer])
            with torch.inference_mode():
                loss += float(model(torch.tensor([ids.prompt + ids.answer]), labels=labels).loss) * len(
                    ids.answer
                )
            count += len(ids.answer)
        assert one.perplexity == pytest.approx(float(torch.tensor(loss / count).exp()), rel=1e-4)


def test_a_task_has_as_many_items_as_asked_for_shared_among_its_kinds() -> None:
    for name in tasks.NAMES:
        answered = [kind for kind in tasks.kinds_of(name) if not score.is_told(name, kind)]
        for n in (1, 7, 500):
            kinds = len(answered or tasks.kinds_of(name))
            assert n <= zoo.share(name, n) * kinds < n + kinds


def test_no_item_is_asked_twice_and_all_are_held_out() -> None:
    items = score.held_out("arithmetic", "add2", 300)
    assert len(set(items)) == len(items)
    assert (
        items[:5]
        == list(dict.fromkeys(tasks.make("arithmetic", "heldout", 0, i, "add2") for i in range(99)))[:5]
    )


def test_a_text_is_right_only_to_the_letter() -> None:
    plain = tasks.make("sorting", "heldout", 0, 0)
    assert score.is_right(plain, plain.completion)
    for wrong in ("", plain.completion + " ", plain.completion + "\nMore", plain.completion.strip()):
        assert not score.is_right(plain, wrong)
    looked_up = tasks.make("retrieval", "heldout", 0, 0)
    assert score.is_right(looked_up, looked_up.completion + "\nValue of key: 5")  # the texts go on so
    assert not score.is_right(looked_up, looked_up.completion + "5")


def test_the_last_line_is_an_object_and_the_file_has_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    arguments = ["eval", "zoo", "-n", "4", "--tasks", *NAMES, "--device", "cpu", "--json", "-o", str(file)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out.strip().splitlines()
    found = json.loads(shown[-1])
    assert found["model"] == registry.DEFAULT
    kinds = [(row["task"], row["kind"]) for row in found["rows"] if row["kind"] != "all"]
    assert kinds == [(name, kind) for name in NAMES for kind in tasks.kinds_of(name)]
    for name in NAMES:
        whole = next(row for row in found["rows"] if (row["task"], row["kind"]) == (name, "all"))
        parts = [row for row in found["rows"] if row["task"] == name and row["right"] is not None]
        assert whole["n"] == sum(row["n"] for row in parts) - whole["n"] >= 4
        assert whole["right"] == sum(row["right"] for row in parts) - whole["right"]
        assert whole["low"] <= whole["accuracy"] <= whole["high"]
    with file.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["task"], row["n"]) for row in rows] == [(r["task"], str(r["n"])) for r in found["rows"]]


def test_rows_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    arguments = ["eval", "zoo", "-n", "2", "--tasks", "sentiment", "--device", "cpu", "-o", str(file)]
    assert main(arguments) == main([*arguments, "--seed", "1"]) == 0
    with file.open(newline="") as handle:
        assert [row["seed"] for row in csv.DictReader(handle)] == ["0"] * 3 + ["1"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wren-0"], "no embedded model 'wren-0': choose one of"),
        (["zoo/wren-0"], "no embedded model 'zoo/wren-0'"),
        (["--tasks", "poetry"], "unknown task 'poetry': choose one of stories"),
        (["-n", "0"], "0 items a task measure nothing: ask for at least 1"),
        (["-n", "-5"], "-5 items a task"),
        (
            ["-o", "nowhere/rows.csv"],
            "nowhere/rows.csv cannot be written: give a file in a folder that exists",
        ),
        (["-o", "."], ". cannot be written"),
        (["-o", "other.csv"], "other.csv has other columns (a, b): give a new file"),
        (["empty"], "empty has no tokenizer.json: give a folder"),
        (["foreign"], "foreign has a tokenizer of its own"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/tokenizer.json").write_text("{}")
    assert main(["eval", "zoo", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_context_too_short_for_every_item_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="no item of retrieval fits a context of 16 tokens"):
        zoo.draw(trained, 2, ("retrieval",), 0, 16)


def test_the_bar_counts_every_answer() -> None:
    counted: list[int] = []

    class Bar:
        def __init__(self, *_: object, total: int, **__: object) -> None:
            counted.append(-total)

        def update(self, by: int = 1) -> None:
            counted.append(by)

        def set_postfix_str(self, *_: object, **__: object) -> None: ...

        def close(self) -> None: ...

    zoo.measure(registry.path(registry.DEFAULT), 4, names=("sentiment",), device="cpu", bar=Bar)
    assert counted[0] == -4
    assert sum(counted) == 0
