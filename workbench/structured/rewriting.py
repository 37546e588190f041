"""Schemas said again in words a backend enforces: what matches the new schema matches the old."""

from __future__ import annotations

import re
from typing import Any

# A year of four digits, months with their days, but February 29th; offsets are written out or Z.
_DATE = (
    "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "ipv4": f"^{_OCTET}(\\.{_OCTET}){{3}}$",
}
# Characters that JSON writes as they are. Said as ranges: in the complement of a set xgrammar lets bytes
# through that are no UTF-8.
_PLAIN = "[ !#-\\[\\]-~\u00a0-\ud7ff\ue000-\U0010ffff]"
_INNER = ("items", "additionalProperties")
_INNER_LISTS = ("anyOf", "prefixItems")
_INNER_MAPS = ("properties", "$defs", "definitions")


def for_xgrammar(schema: Any) -> Any:
    """A schema on xgrammar's list, without what xgrammar 0.2.8 gets wrong.

    Keywords without a type beside them count for nothing there; strings of bounded length may hold bare
    control characters, some formats impossible values; a group that is optional and ends in a repetition may
    begin within; and an array is closed where nothing says what its items are.
    """
    if not isinstance(schema, dict):
        return schema
    inner = {name: for_xgrammar(value) for name, value in schema.items() if name in _INNER}
    inner |= {name: [for_xgrammar(v) for v in schema[name]] for name in _INNER_LISTS if name in schema}
    inner |= {
        name: {key: for_xgrammar(v) for key, v in schema[name].items()}
        for name in _INNER_MAPS
        if name in schema
    }
    said = {name: inner.get(name, value) for name, value in schema.items()}
    if "type" in said or not said.keys() & _SPEAK_OF.keys():
        return _with_items(_with_pattern(said))
    return _with_types(said)


_SPEAK_OF = {
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "number"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("properties", "required", "additionalProperties"), "object"),
    **dict.fromkeys(("minProperties", "maxProperties"), "object"),
}


def _with_types(schema: dict[str, Any]) -> dict[str, Any]:
    """Keywords bind values of their own type, and let all others be: as alternatives, a type each."""
    alternatives = []
    for kind in ("object", "array", "string", "number", "boolean", "null"):
        own = {name: value for name, value in schema.items() if _SPEAK_OF.get(name) == kind}
        alternatives.append(_with_items(_with_pattern({"type": kind, **own})))
    rest = {name: value for name, value in schema.items() if name not in _SPEAK_OF}
    return {**rest, "anyOf": alternatives}


def _with_pattern(schema: dict[str, Any]) -> dict[str, Any]:
    bounds = {"minLength", "maxLength"} & schema.keys()
    pattern = FORMATS.get(schema.get("format", ""), schema.get("pattern"))
    if bounds:
        most = schema.get("maxLength", "")
        pattern = f"^{_PLAIN}{{{int(schema.get('minLength', 0))},{most}}}$"
    if pattern is None:
        return schema
    kept = {name: value for name, value in schema.items() if name not in {"format", *bounds}}
    return {**kept, "pattern": count_optional_groups(pattern)}


_SIGNS = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|\)\?|.", re.DOTALL
)  # an escape, a set, the end of an optional group


def count_optional_groups(pattern: str) -> str:
    """`(...)?` as `(...){0,1}`, which is the same."""
    return "".join("){0,1}" if sign == ")?" else sign for sign in _SIGNS.findall(pattern))


def _with_items(schema: dict[str, Any]) -> dict[str, Any]:
    kinds = schema.get("type", ())
    is_array = "array" in kinds if isinstance(kinds, list) else kinds == "array"
    if is_array and not {"items", "prefixItems"} & schema.keys():
        return {**schema, "items": {}}
    return schema
