"""Structured output of the embedded model: every output that ends with "stop" is what was asked for."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from workbench import LLM, SamplingParams, StructuredOutputsParams
from workbench.outputs import CompletionOutput

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["fox", "owl", 7, None]},
        "home": {
            "type": "object",
            "properties": {"city": {"type": "string", "minLength": 1, "maxLength": 6}, "on": {"const": True}},
            "required": ["city", "on"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 2},
        "size": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
    },
    "required": ["name", "age", "kind", "home", "tags", "size"],
    "additionalProperties": False,
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer", "minimum": 1, "maximum": 9},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        }
    },
}
ROW = {
    "type": "array",
    "prefixItems": [{"type": ["integer", "null"]}, {"type": "string", "minLength": 2, "maxLength": 5}],
    "items": {"type": "string", "enum": ["north", "south"]},
    "minItems": 3,
    "maxItems": 4,
}
ASKED = 100


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=512, device="cpu") as opened:
        yield opened


def sampled(llm: LLM, count: int = 20, **constraint: Any) -> list[CompletionOutput]:
    """Outputs at temperature 1, of different seeds."""
    params = SamplingParams(
        temperature=1,
        max_tokens=120,
        seed=1,
        n=count,
        structured_outputs=StructuredOutputsParams(**constraint),
    )
    (output,) = llm.generate("Tell me about the fox.\n\n", params, use_tqdm=False)
    assert {one.finish_reason for one in output.outputs} <= {"stop", "length"}
    return output.outputs


def texts(outputs: list[CompletionOutput]) -> list[str]:
    """Of those that ended by themselves."""
    return [one.text for one in outputs if one.finish_reason == "stop"]


@pytest.mark.parametrize(
    ("schema", "least"), [(PERSON, 40), (TREE, 90), (ROW, 40)], ids=["person", "tree", "row"]
)
def test_every_output_that_ends_with_stop_is_valid(llm: LLM, schema: dict[str, Any], least: int) -> None:
    ended = texts(sampled(llm, ASKED, json=schema, disable_any_whitespace=True))
    assert len(ended) >= least
    for text in ended:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)
    assert len(set(ended)) > 1


def test_a_schema_is_a_dict_or_its_text(llm: LLM) -> None:
    assert texts(sampled(llm, 5, json=TREE)) == texts(sampled(llm, 5, json=json.dumps(TREE)))


def test_any_object_is_an_object(llm: LLM) -> None:
    ended = texts(sampled(llm, 30, json_object=True))
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_a_regex_is_matched_whole(llm: LLM) -> None:
    pattern = r"[A-Z][a-z]{2,6} [0-9]{1,3}(\.[0-9]+)?"
    ended = texts(sampled(llm, regex=pattern))
    assert len(ended) > 10
    assert all(re.fullmatch(pattern, text) for text in ended)


def test_a_choice_is_one_of_them(llm: LLM) -> None:
    choices = ["a fox", "a fox and an owl", "Füchse 🦊"]
    outputs = sampled(llm, choice=choices)
    assert [one.finish_reason for one in outputs] == ["stop"] * 20
    assert {one.text for one in outputs} <= set(choices)
    assert [one.stop_reason for one in outputs] == [None] * 20


def test_a_grammar_counts_its_brackets(llm: LLM) -> None:
    ended = texts(sampled(llm, grammar='root ::= "(" root ")" | [a-z]{1,3}'))
    assert len(ended) > 10
    for text in ended:
        assert re.fullmatch(r"\(*[a-z]{1,3}\)*", text)
        assert text.count("(") == text.count(")")


def test_a_structural_tag_holds_a_schema(llm: LLM) -> None:
    content = {"type": "json_schema", "json_schema": TREE}
    tag = {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<t>", "content": content, "end": "</t>"},
    }
    ended = texts(sampled(llm, structural_tag=json.dumps(tag)))
    assert ended
    for text in ended:
        jsonschema.validate(json.loads(text.removeprefix("<t>").removesuffix("</t>")), TREE)


@pytest.mark.parametrize("backend", ["guidance", "outlines"])
def test_the_other_backends_run_too(backend: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    with LLM(max_model_len=256, device="cpu", structured_outputs_config={"backend": backend}) as llm:
        assert llm.config.structured_outputs_backend == backend
        outputs = sampled(llm, 10, json=schema)
    assert texts(outputs)
    assert all(json.loads(text)["a"] in "xy" for text in texts(outputs))


# --- refused before anything is queued ----------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a schema that is no JSON": ({"json": "{"}, ValueError, "json is not JSON"),
    "an invalid schema": ({"json": {"type": "foo"}}, ValueError, "no type 'foo'"),
    "a keyword no backend enforces": ({"json": {"not": {}}}, ValueError, "xgrammar does not enforce .*'not'"),
    "an invalid regex": ({"regex": "(a"}, ValueError, "cannot compile the regex"),
    "an invalid grammar": ({"grammar": 'root ::= "a'}, ValueError, "cannot compile the grammar"),
    "an invalid tag": ({"structural_tag": "{}"}, ValueError, "cannot compile the structural_tag"),
    "a regex of the wrong kind": ({"regex": 3}, TypeError, "regex is 3: use a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_enforced_is_refused_before_it_is_queued(llm: LLM, case: str) -> None:
    constraint, kind, says = REFUSED[case]
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**constraint))
    with pytest.raises(kind, match=says):
        llm.generate(["a", "b"], params, use_tqdm=False)
    assert not llm.has_unfinished_requests()


def test_two_constraints_an_empty_choice_and_ignore_eos_are_refused(llm: LLM) -> None:
    constraint = StructuredOutputsParams(regex="a")
    with pytest.raises(ValueError, match="ignore_eos is True: leave one of them out"):
        SamplingParams(structured_outputs=constraint, ignore_eos=True)
    constraint.choice = ["b"]
    with pytest.raises(ValueError, match="exactly one.*got regex and choice"):
        llm.generate("a", SamplingParams(structured_outputs=constraint), use_tqdm=False)
    with pytest.raises(ValueError, match="choice is empty"):
        StructuredOutputsParams(choice=[])


SETTINGS: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown backend": ({"backend": "magic"}, ValueError, "'magic' is unknown: use one of auto, xgrammar"),
    "a backend of the wrong kind": ({"backend": 3}, TypeError, "the backend is 3"),
    "no dict": ("xgrammar", TypeError, "use a dict"),
    "an unknown name": ({"backends": "auto"}, TypeError, "no 'backends'.*did you mean 'backend'"),
    "what belongs to a request": ({"disable_any_whitespace": True}, TypeError, "belongs to a request"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_bad_setting_is_refused_with_what_to_use(case: str) -> None:
    given, kind, says = SETTINGS[case]
    with pytest.raises(kind, match=says):
        LLM(structured_outputs_config=given)


def test_an_absent_backend_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "outlines_core", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"'outlines' is not installed: pip install workbench\[grammars\]"):
        LLM(structured_outputs_config={"backend": "outlines"})


def test_without_a_tokenizer_there_is_no_structured_output() -> None:
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    with (
        LLM(skip_tokenizer_init=True, max_model_len=64) as llm,
        pytest.raises(ValueError, match="need a tokenizer"),
    ):
        llm.generate([[5, 6]], params, use_tqdm=False)
