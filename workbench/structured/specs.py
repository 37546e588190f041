"""From what a request asks for to a specification: one canonical text a constraint. Compiles nothing."""

from __future__ import annotations

import json
from typing import Any

from workbench.params import StructuredOutputsParams
from workbench.structured.grammar import Spec


def spec_of(params: StructuredOutputsParams) -> Spec:
    """The constraint, checked as far as that needs no backend.

    Raises:
        TypeError, ValueError: a value of the wrong kind, or text that is not JSON where JSON is due.
    """
    space = (
        not params.disable_any_whitespace,
        _text("whitespace_pattern", params.whitespace_pattern, optional=True) or None,
    )
    if params.json_object:
        return Spec("json_object", "", *space)
    if params.json is not None:
        return Spec("json", _json("json", params.json), *space)
    if params.choice is not None:
        return Spec("choice", json.dumps(_choices(params.choice), ensure_ascii=False))
    if params.structural_tag is not None:
        return Spec("structural_tag", _json("structural_tag", params.structural_tag), *space)
    if params.regex is not None:
        return Spec("regex", _text("regex", params.regex))
    return Spec("grammar", _text("grammar", params.grammar))


def _text(name: str, value: object, *, optional: bool = False) -> str:
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}: use a str")
    if not value.strip() and not optional:
        raise ValueError(f"{name} is empty, so nothing could be generated: leave structured_outputs out")
    return value


def _json(name: str, value: object) -> str:
    """JSON text, or what stands for it, on one line; the order of keys is kept, for outputs follow it."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is not JSON ({error}): pass a dict, or its text") from error
    if not isinstance(value, dict | bool):
        raise TypeError(f"{name} is {value!r}: use a dict, or JSON text of an object")
    return dump(value)


def dump(value: Any) -> str:
    """JSON on one line; ValueError for what JSON has no word for."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError as error:
        raise ValueError("the schema is nested too deeply: name its parts in $defs") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r} cannot be written as JSON: {error}") from error


def _choices(choices: object) -> list[str]:
    if not isinstance(choices, list | tuple) or not all(isinstance(one, str) for one in choices):
        raise TypeError(f"choice is {choices!r}: use a list of str")
    if not choices or not all(choices):
        raise ValueError(f"choice is {choices!r}: list strings that are not empty")
    return list(dict.fromkeys(choices))
