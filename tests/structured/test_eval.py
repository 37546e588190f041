"""`workbench eval grammars`: counts over a folder in the layout of the JSON Schema Test Suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from workbench.__main__ import main
from workbench.evals.grammars import BYTES, Finding, measure, read_suite
from workbench.structured.backends import open_backend
from workbench.structured.grammar import CompiledGrammar, Spec

SUITE: Mapping[str, list[dict[str, Any]]] = {
    "maximum": [
        {
            "schema": {"type": "integer", "maximum": 3},
            "tests": [{"data": 3, "valid": True}, {"data": 4, "valid": False}, {"data": "x", "valid": False}],
        },
    ],
    "not": [
        {"schema": {"not": {"type": "integer"}}, "tests": [{"data": 1, "valid": False}]},
        {"schema": {"enum": ["a"]}, "tests": [{"data": "a", "valid": True}, {"data": "b", "valid": True}]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, groups in SUITE.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(groups), encoding="utf-8")
    return tmp_path


class Careless:
    """A backend that lets every number through, whatever the schema says."""

    def compile(self, spec: Spec) -> CompiledGrammar:
        return open_backend("xgrammar", BYTES).compile(Spec("regex", "[0-9]+"))


def test_what_is_refused_allowed_and_not_produced_is_counted(folder: Path) -> None:
    assert measure(list(read_suite(folder)), open_backend("xgrammar", BYTES), "xgrammar") == [
        Finding("maximum", "xgrammar", 1, 0, invalid=2, wrongly_allowed=0, valid=1, not_produced=0),
        Finding("not", "xgrammar", 1, 1, invalid=0, wrongly_allowed=0, valid=2, not_produced=1),
    ]


def test_a_careless_backend_is_found_out(folder: Path) -> None:
    assert measure(list(read_suite(folder)), Careless(), "careless") == [
        Finding("maximum", "careless", 1, 0, invalid=2, wrongly_allowed=1, valid=1, not_produced=0),
        Finding("not", "careless", 2, 0, invalid=1, wrongly_allowed=1, valid=2, not_produced=2),
    ]


def test_the_command_prints_a_table_and_writes_its_rows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    assert main(["eval", "grammars", str(folder), "--backends", "xgrammar", "--json", "-o", str(rows)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["schemas"] == 3
    assert [(row["keyword"], row["accepted"]) for row in found["rows"]] == [
        ("maximum", 1),
        ("not", 1),
        ("all", 2),
    ]
    with rows.open(newline="", encoding="utf-8") as file:
        assert [row["keyword"] for row in csv.DictReader(file)] == ["maximum", "not", "all"]


def test_a_folder_without_schemas_and_an_unknown_backend_are_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["eval", "grammars", str(empty)]) == 2
    assert "holds no *.json" in capsys.readouterr().err
    assert main(["eval", "grammars", str(folder), "--backends", "magic"]) == 2
    assert "'magic' is unknown" in capsys.readouterr().err
