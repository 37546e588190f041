"""`workbench bench widgets` runs a notebook's cells in a kernel, with widgets open and without."""

from __future__ import annotations

import json

import pytest

from workbench.bench.cli import main
from workbench.bench.widgets import KINDS, MODES, Load, measure
from workbench.widgets import __all__ as names
from workbench.widgets.base import Widget


def test_every_way_runs_beside_a_run_with_nothing_open(capsys: pytest.CaptureFixture) -> None:
    arguments = ["--model", "zoo/wren-1m", "--requests", "2", "--tokens", "8", "--out", "4", "--rounds", "1"]
    assert main(["widgets", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    rows = {row["mode"]: row for row in found["rows"]}
    assert sorted(rows) == sorted(MODES)
    for mode, row in rows.items():
        assert row["ratio"] == pytest.approx(row["out_tokens_per_s"] / row["off_tokens_per_s"], rel=1e-2)
        assert row["cpu_ratio"] > 0
        assert found[f"{mode}_interval"] == [row["ratio"]] * 2
        assert found[f"cpu_{mode}_ratio"] == row["cpu_ratio"]
    assert rows["closed_again"]["draws"] == rows["closed_again"]["drawing"] == 0
    assert found["most_drawing"] == rows["open"]["drawing"]


def test_it_opens_every_widget_that_needs_nothing_but_an_engine() -> None:
    import workbench.widgets

    made = {name for name in names if isinstance(getattr(workbench.widgets, name), type)}
    made = {name for name in made if issubclass(getattr(workbench.widgets, name), Widget)}
    assert set(KINDS) <= made


def test_a_cell_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"the cell .*no-such-model.* failed"):
        measure("zoo/no-such-model", Load(1, 4, 4, 2, 0), 1)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        measure(None, Load(1, 4, 4, 2, 0), 0)
