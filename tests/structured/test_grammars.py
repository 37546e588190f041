"""From params to compiled grammars: what is refused, which backend is taken, what is kept."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from workbench import StructuredOutputsParams
from workbench.evals.grammars import BYTES
from workbench.structured.backends import backends_for
from workbench.structured.enforced import GUIDANCE
from workbench.structured.grammars import Grammars
from workbench.structured.rewriting import count_optional_groups
from workbench.structured.schema import check_schema
from workbench.structured.specs import spec_of


def grammars(backend: str = "auto", **options: Any) -> Grammars:
    return Grammars(backend, lambda: BYTES, **options)


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed


def test_auto_goes_on_to_a_backend_that_enforces_the_schema() -> None:
    schema = {"type": "integer", "multipleOf": 3}
    assert "guidance" in type(grammars().compile(StructuredOutputsParams(json=schema))).__module__
    with pytest.raises(ValueError, match="xgrammar does not enforce the keyword 'multipleOf'"):
        grammars("xgrammar").compile(StructuredOutputsParams(json=schema))


def test_auto_without_the_extra_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "llguidance", "outlines_core")
    with pytest.raises(
        ValueError, match=r"'not'.*guidance and outlines may: pip install workbench\[grammars\]"
    ):
        grammars().compile(StructuredOutputsParams(json={"not": {}}))


def test_an_absent_backend_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "llguidance")
    with pytest.raises(ValueError, match=r"'guidance' is not installed: pip install workbench\[grammars\]"):
        backends_for("guidance")
    assert backends_for("auto") == ("xgrammar", "outlines")


def test_equal_constraints_are_compiled_once_and_the_oldest_is_forgotten() -> None:
    kept = grammars("xgrammar", cached=2)
    made = [kept.compile(StructuredOutputsParams(json={"type": "null"})) for _ in range(2)]
    made.append(kept.compile(StructuredOutputsParams(json='{ "type": "null" }')))
    assert made[0] is made[1] is made[2]
    number = id(made[0])
    del made
    for pattern in ("a", "b"):
        kept.compile(StructuredOutputsParams(regex=pattern))
    assert len(kept._recent) == 2
    assert id(kept.compile(StructuredOutputsParams(regex="b"))) != number


def test_a_grammar_somebody_holds_is_not_compiled_again_however_many_come_after() -> None:
    kept = grammars("xgrammar", cached=1)
    held = kept.ask(StructuredOutputsParams(regex="a"))
    kept.compile(StructuredOutputsParams(regex="b"))
    assert kept.compile(StructuredOutputsParams(regex="a")) is held.grammar()


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"json": "{"}, ValueError, "not JSON"),
        ({"json": [1]}, TypeError, "use a dict"),
        ({"json": {"enum": [float("nan")]}}, ValueError, "cannot be written as JSON"),
        ({"json": {"minimum": object()}}, ValueError, "cannot be written as JSON"),
        ({"regex": 3}, TypeError, "use a str"),
        ({"regex": " "}, ValueError, "regex is empty"),
        ({"choice": "yes"}, TypeError, "list of str"),
        ({"choice": ["a", 1]}, TypeError, "list of str"),
        ({"choice": [""]}, ValueError, "not empty"),
        ({"grammar": ["a"]}, TypeError, "use a str"),
        ({"structural_tag": "<a>"}, ValueError, "not JSON"),
        ({"json_object": True, "whitespace_pattern": 3}, TypeError, "whitespace_pattern"),
    ],
)
def test_a_constraint_of_the_wrong_kind_is_refused(
    given: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        spec_of(StructuredOutputsParams(**given))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (3, "neither an object nor a bool"),
        ({"type": "foo"}, "no type 'foo'"),
        ({"properties": []}, "properties is"),
        ({"anyOf": []}, "anyOf is"),
        ({"type": "object", "required": "a"}, "required is"),
        ({"type": "object", "required": [1]}, "required is"),
        ({"type": "string", "minLength": "3"}, "minLength is"),
        ({"type": "integer", "maximum": True}, "maximum is"),
        ({"enum": []}, "enum is empty"),
        ({"properties": {"a": {"items": 7}}}, "#/properties/a/items: 7"),
        ({"$ref": "#/nowhere"}, "'#/nowhere'"),
        ({"$ref": "other.json"}, "'other.json'"),
    ],
)
def test_an_invalid_schema_is_refused_with_its_place(schema: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_schema(schema, GUIDANCE)


def test_an_optional_group_is_counted_and_a_set_or_an_escape_is_left_alone() -> None:
    assert count_optional_groups(r"^(a(b)?[)?]\)?c)?$") == r"^(a(b){0,1}[)?]\)?c){0,1}$"


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_a_constraint_that_nothing_matches_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=f"{backend}: no output matches|{backend}.*Circular") as refused:
        grammars(backend).compile(StructuredOutputsParams(json=LOOP))
    assert "\n" not in str(refused.value)


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match=r"nested too deeply.*\$defs"):
        grammars().compile(StructuredOutputsParams(json=schema))


def test_a_ref_to_what_is_no_schema_of_this_one_is_refused() -> None:
    with pytest.raises(ValueError, match="'#/default'"):
        check_schema({"$ref": "#/default", "default": {"type": "null"}}, GUIDANCE)
