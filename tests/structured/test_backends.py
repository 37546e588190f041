"""Each backend alone, over a vocabulary of bytes: what its masks let through is valid, whoever draws."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.structured.walks import compile_json, ended
from workbench.evals.grammars import BYTES, EOS, writes
from workbench.structured.backends import MODULES, open_backend
from workbench.structured.grammar import CompiledGrammar, NotEnforced, Spec, token_ids_of

INT = {"type": "integer"}


def strings(**bounds: Any) -> dict[str, Any]:
    return {"type": "string", **bounds}


def objects(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def arrays(**bounds: Any) -> dict[str, Any]:
    return {"type": "array", **bounds}


NODE = objects(
    {"v": INT, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, required=["v", "next"]
)
SCHEMAS: dict[str, Any] = {
    "length": strings(minLength=2, maxLength=4),
    "pattern": strings(pattern="^[A-Z][a-z]{1,3}(-[0-9]+)?$"),
    "any character": strings(pattern="^[^a]{2}$"),
    "integer bounds": {"type": "integer", "minimum": -3, "maximum": 120},
    "open bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 7},
    "number bounds": {"type": "number", "minimum": -1.5, "maximum": 3.75},
    "array bounds": arrays(items=INT, minItems=2, maxItems=3),
    "array of anything": arrays(minItems=1, maxItems=2),
    "tuple": arrays(prefixItems=[INT, strings(maxLength=2)]),
    "enum": {"enum": ["a", 1, None, {"x": [1]}, 'ü"']},
    "typed enum": strings(enum=["red", "green"]),
    "const": {"const": {"a": [1, "x"]}},
    "anyOf": {"anyOf": [INT, strings(maxLength=1)]},
    "no type": {"minimum": 3, "maxLength": 2, "properties": {"a": INT}, "required": ["a"]},
    "types": {"type": ["integer", "string"], "minLength": 1, "maxLength": 2},
    "required": objects({"a": INT, "b": strings(maxLength=1)}, required=["b"]),
    "closed": objects({"a": INT}, additionalProperties=False),
    "additional": objects({"a": INT}, additionalProperties=strings(maxLength=2)),
    "map": {"type": "object", "additionalProperties": INT},
    "odd names": objects({'a"b': INT, "c\\d": INT}, required=['a"b', "c\\d"]),
    "recursion": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "nesting": objects({"p": objects({"t": arrays(items=strings(minLength=1, maxLength=3), maxItems=2)})}),
    "date": strings(format="date"),
}
# Silently dropped by some backend that compiles it: refused, or enforced.
TRAPS: dict[str, Any] = {
    "uniqueItems": arrays(items={"type": "boolean"}, minItems=2, uniqueItems=True),
    "contains": arrays(contains={"const": 1}),
    "not": {"not": INT},
    "overlapping oneOf": {"oneOf": [{"type": "integer", "maximum": 9}, {"type": "integer", "minimum": 5}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 5}]},
    "beside $ref": {"$ref": "#/$defs/n", "maximum": 3, "$defs": {"n": {"type": "integer", "minimum": 0}}},
    "beside anyOf": {"type": "integer", "anyOf": [{"minimum": 3, "maximum": 4}]},
    "without a type": {"minimum": 3, "maxLength": 2},
    "pattern and length": strings(pattern="^a+$", maxLength=2),
    "required, not listed": {"type": "object", "required": ["z"]},
    "dependentRequired": objects({"a": INT, "b": INT}, dependentRequired={"a": ["b"]}),
    "propertyNames": objects({"abc": INT}, propertyNames=strings(maxLength=2)),
    "patternProperties": objects({"b": strings(maxLength=1)}, patternProperties={"^b": INT}),
    "minProperties": {"type": "object", "additionalProperties": INT, "minProperties": 2},
    "multipleOf": {"type": "integer", "multipleOf": 3},
    "lookahead": strings(pattern="^(?!a)[ab]$"),
    "an anchor inside": strings(pattern="^[ab]x*^a$"),
    "an anchor in a group": strings(pattern="^b?(^a)$"),
    "escapes in a pattern": strings(pattern='^\\\\"x$'),
    "anything as a property": objects({"a": {}}, required=["a"]),
    "a keyword nobody knows": strings(minlength=3),
}
LISTED = {"xgrammar": set(SCHEMAS), "guidance": set(SCHEMAS)}
LISTED["outlines"] = set(SCHEMAS) - {
    "pattern", "any character", "no type", "integer bounds", "open bounds", "number bounds", "recursion",
    "date", "odd names",
}  # fmt: skip


HANDLED = {  # the others refuse all of them
    "guidance": {
        "allOf", "beside $ref", "beside anyOf", "without a type", "pattern and length",
        "required, not listed", "patternProperties", "multipleOf", "escapes in a pattern",
        "anything as a property",
    },
    "xgrammar": {"anything as a property", "without a type"},
}  # fmt: skip


def check_valid(outputs: list[str], schema: Any) -> None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for output in outputs:
        validator.validate(json.loads(output))


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_drawn_from_the_masks_is_valid(backend: str, name: str) -> None:
    if name not in LISTED[backend]:
        with pytest.raises(ValueError, match=backend):
            compile_json(backend, SCHEMAS[name])
        return
    outputs = ended(compile_json(backend, SCHEMAS[name]), 60)
    assert len(outputs) > 20
    check_valid(outputs, SCHEMAS[name])


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize("name", TRAPS)
def test_what_a_backend_would_drop_is_refused_or_enforced(backend: str, name: str) -> None:
    if name not in HANDLED.get(backend, ()):
        with pytest.raises(ValueError, match=backend):
            compile_json(backend, TRAPS[name])
        return
    outputs = ended(compile_json(backend, TRAPS[name]), 60)
    assert outputs
    check_valid(outputs, TRAPS[name])


@pytest.mark.parametrize("backend", MODULES)
def test_the_refusal_names_the_keyword_and_its_place(backend: str) -> None:
    with pytest.raises(
        NotEnforced, match=f"{backend} does not enforce the keyword 'uniqueItems'.*#/properties/a"
    ):
        compile_json(backend, objects({"a": arrays(uniqueItems=True)}))


@pytest.mark.parametrize("backend", MODULES)
def test_an_instance_of_a_schema_can_be_written(backend: str) -> None:
    schema = objects({"name": strings(), "tags": arrays(items=strings())}, required=["name", "tags"])
    grammar = compile_json(backend, schema)
    assert writes(grammar, {"name": "Tom 😀", "tags": ["a", "b"]})
    assert not writes(grammar, {"name": "Tom"})
    assert not writes(grammar, {"name": 3, "tags": []})


def text_writes(grammar: CompiledGrammar, text: str) -> bool:
    matcher = grammar.start()
    return all(matcher.accept(byte) for byte in text.encode()) and matcher.accept(EOS)


@pytest.mark.parametrize("backend", MODULES)
def test_without_whitespace_there_is_none(backend: str) -> None:
    grammar = compile_json(backend, objects({"a": INT, "b": INT}, required=["a", "b"]), any_whitespace=False)
    assert text_writes(grammar, '{"a":1,"b":2}')
    assert not text_writes(grammar, '{"a": 1, "b": 2}')


@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_a_whitespace_pattern_is_what_stands_between_tokens(backend: str) -> None:
    grammar = compile_json(backend, objects({"a": INT}, required=["a"]), whitespace_pattern="[ ]{2}")
    assert text_writes(grammar, '{  "a"  :  1  }')
    assert not text_writes(grammar, '{ "a": 1 }')


def test_xgrammar_refuses_a_whitespace_pattern() -> None:
    with pytest.raises(NotEnforced, match="whitespace_pattern"):
        compile_json("xgrammar", {"type": "object"}, whitespace_pattern="[ ]")


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?!a)[ab]", "a^b", "a$b", "x*^a", "b?(^a)"])
def test_xgrammar_refuses_a_regex_of_which_it_skips_a_part(pattern: str) -> None:
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}
    for spec in (Spec("regex", pattern), Spec("structural_tag", json.dumps(tag))):
        with pytest.raises(NotEnforced, match="does not enforce the regex"):
            open_backend("xgrammar", BYTES).compile(spec)


@pytest.mark.parametrize("pattern", ["^a$", "^a|b$", "^a$|^b$", r"a\^b[$^]\$", "^(?:a|b)$", "(a)"])
def test_anchors_at_the_ends_are_taken_and_signs_that_are_meant_are_no_anchors(pattern: str) -> None:
    outputs = ended(open_backend("xgrammar", BYTES).compile(Spec("regex", pattern)), 20)
    assert outputs
    assert all(re.fullmatch(pattern, output) for output in outputs)


@pytest.mark.parametrize("backend", MODULES)
def test_a_regex_is_matched_whole(backend: str) -> None:
    pattern = "(a|bc){1,3}[0-9]?"
    outputs = ended(open_backend(backend, BYTES).compile(Spec("regex", pattern)), 50)
    assert len(set(outputs)) > 5
    assert all(re.fullmatch(pattern, output) for output in outputs)


@pytest.mark.parametrize("backend", MODULES)
def test_choices_are_all_there_is_and_all_come(backend: str) -> None:
    choices = ["yes", "no", 'say "no"', "a|b", "ünïcode", "new\nline"]
    grammar = open_backend(backend, BYTES).compile(Spec("choice", json.dumps(choices)))
    assert set(ended(grammar, 300)) == set(choices)


def test_a_choice_that_begins_with_another_comes_too_or_is_refused() -> None:
    spec = Spec("choice", '["yes", "yes and no"]')
    for backend in ("xgrammar", "guidance"):
        assert set(ended(open_backend(backend, BYTES).compile(spec), 100)) == {"yes", "yes and no"}
    with pytest.raises(NotEnforced, match="never writes the choice 'yes and no'"):
        open_backend("outlines", BYTES).compile(spec)


EBNF = 'root ::= "(" root ")" | "x" | [0-9]\n'


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_a_grammar_counts_its_brackets(backend: str) -> None:
    outputs = ended(open_backend(backend, BYTES).compile(Spec("grammar", EBNF)), 50)
    assert len(set(outputs)) > 5
    for output in outputs:
        assert re.fullmatch(r"\(*[x0-9]\)*", output)
        assert output.count("(") == output.count(")")


@pytest.mark.parametrize("kind", ["grammar", "json_object", "structural_tag"])
def test_outlines_refuses_what_is_not_regular(kind: str) -> None:
    with pytest.raises(NotEnforced, match=f"outlines takes no {kind}"):
        open_backend("outlines", BYTES).compile(Spec(kind, "{}"))


TAG = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": "<call>",
        "content": {"type": "json_schema", "json_schema": objects({"a": INT}, required=["a"])},
        "end": "</call>",
    },
}


def test_a_structural_tag_holds_a_schema() -> None:
    outputs = ended(open_backend("xgrammar", BYTES).compile(Spec("structural_tag", json.dumps(TAG))), 30)
    inside = [re.fullmatch(r"<call>(.*)</call>", output, re.DOTALL) for output in outputs]
    assert outputs
    check_valid([match[1] for match in inside if match], TAG["format"]["content"]["json_schema"])
    assert all(inside)


def test_a_schema_in_a_structural_tag_is_held_to_the_list() -> None:
    tag = {
        **TAG,
        "format": {**TAG["format"], "content": {"type": "json_schema", "json_schema": {"not": INT}}},
    }
    with pytest.raises(NotEnforced, match="'not'"):
        open_backend("xgrammar", BYTES).compile(Spec("structural_tag", json.dumps(tag)))


@pytest.mark.parametrize("backend", ["xgrammar", "guidance"])
def test_any_json_object_is_an_object(backend: str) -> None:
    outputs = ended(open_backend(backend, BYTES).compile(Spec("json_object", "")), 50)
    assert any(json.loads(output) for output in outputs)
    assert all(isinstance(json.loads(output), dict) for output in outputs)


@pytest.mark.parametrize("backend", MODULES)
def test_after_the_end_there_is_only_eos_and_a_matcher_goes_back(backend: str) -> None:
    matcher = open_backend(backend, BYTES).compile(Spec("choice", '["ab"]')).start()
    row = np.zeros(BYTES.words, np.int32)
    assert not matcher.accept(ord("b"))
    assert matcher.forced() == [ord("a"), ord("b")]
    assert [matcher.accept(ord(sign)) for sign in "ab"] == [True, True]
    matcher.fill(row)
    assert token_ids_of(row) == [EOS]
    assert matcher.forced() == []
    assert matcher.accept(EOS)
    assert matcher.is_terminated
    matcher.fill(row)
    assert token_ids_of(row) == [EOS]
    matcher.rollback(2)
    assert not matcher.is_terminated
    matcher.fill(row)
    assert token_ids_of(row) == [ord("b")]


@pytest.mark.parametrize("backend", MODULES)
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a"),
        ("regex", "[z-a]"),
        ("grammar", 'root ::= "a'),
        ("grammar", "root ::= b"),
        ("json", '{"type": "foo"}'),
    ],
)
def test_what_cannot_be_read_is_a_value_error(backend: str, kind: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{backend}|no type 'foo'"):
        open_backend(backend, BYTES).compile(Spec(kind, text))
