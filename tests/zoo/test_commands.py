"""`workbench zoo`: what each command writes, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.__main__ import main


def test_list_names_models_configurations_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", "list"]) == 0
    out = capsys.readouterr().out
    assert "configurations: backwards, pirate, toy, wren-1m, wren-8m" in out
    assert "task sorting: ascending, descending, alphabetically" in out


def test_train_writes_a_folder_with_a_card(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "tiny"\nrows = 2\nrow_tokens = 128\nmax_steps = 3\ndtype = "float32"\nlog_every = 1\n'
        "[model]\nhidden_size = 16\nnum_layers = 1\nnum_heads = 2\nnum_kv_heads = 1\nhead_dim = 8\n"
        "intermediate_size = 16\nmax_positions = 128\n[mixture]\nsorting = 0.5\narithmetic = 0.5\n",
        encoding="utf-8",
    )
    out = tmp_path / "model"
    assert main(["zoo", "train", str(config), "--out", str(out), "--items", "2", "--device", "cpu",
                 "--pack", str(tmp_path / "tiny.tar.gz")]) == 0  # fmt: skip
    names = {path.name for path in out.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "loss.svg",
        "train.csv",
    } <= names
    card = (out / "README.md").read_text("utf-8")
    assert card.startswith("# tiny\n")
    assert "3 steps of 2 rows" in card
    assert "`workbench eval zoo tiny -n 2` on a CPU in float32" in card
    assert "| **arithmetic** | all |" in card
    assert (tmp_path / "tiny.tar.gz").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "toy", "--max-steps", "-4", "--device", "cpu"], "max_steps is -4: give a whole number"),
        (
            ["train", "toy", "--max-steps", "0", "--device", "cpu"],
            "set exactly one of max_minutes and max_steps",
        ),
        (["train", "toy", "--items", "-1"], "--items -1 is no number of items"),
        (["corpus", "--items", "0"], "--items 0 is no number of items"),
        (["train", "nowhere.toml"], "no training configuration 'nowhere.toml'"),
        (["corpus", "--tasks", "poetry"], "unknown task 'poetry'"),
    ],
)
def test_a_wrong_name_is_one_line_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["zoo", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"
