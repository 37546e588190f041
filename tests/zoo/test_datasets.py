"""The samples under datasets/ are what the generator writes today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workbench.models.zoo import cli
from workbench.models.zoo.corpus import tasks

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "zoo"
ITEMS = 50


@pytest.mark.parametrize("name", [*tasks.NAMES, *tasks.ADAPTER_NAMES])
def test_the_sample_of_a_task_can_be_made_again(name: str, tmp_path: Path) -> None:
    file = f"{name}.heldout.jsonl"
    assert cli.main(["corpus", "--out", str(tmp_path), "--items", str(ITEMS), "--tasks", name]) == 0
    assert (tmp_path / file).read_bytes() == (FOLDER / file).read_bytes()


@pytest.mark.parametrize("name", [*tasks.NAMES, *tasks.ADAPTER_NAMES])
def test_a_row_has_the_columns_of_the_card(name: str) -> None:
    rows = [json.loads(line) for line in (FOLDER / f"{name}.heldout.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == ITEMS
    card = (FOLDER / "README.md").read_text("utf-8")
    assert f"| `{name}.heldout.jsonl` |" in card
    for row in rows:
        assert list(row) == ["task", "kind", "prompt", "completion"]
        assert row["task"] == name
        assert row["kind"] in tasks.kinds_of(name)
        assert row["completion"]


def test_the_samples_stay_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 1_000_000
