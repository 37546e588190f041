"""Holds a JSON schema to the list of what a backend enforces, and names the first keyword that is not on it.

A backend that skips a keyword generates output the schema forbids: better to refuse. Knows no backend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workbench.structured.grammar import NotEnforced
from workbench.structured.patterns import dropped

# Say nothing of an instance.
ANNOTATIONS = frozenset(
    ("$schema", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
     "deprecated", "readOnly", "writeOnly")
)  # fmt: skip
# Decide everything about an instance, or stand beside "type" at most where a backend does not combine.
_WHOLE = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties", "unevaluatedProperties", "unevaluatedItems")
_TYPES = {
    "null": type(None), "boolean": bool, "string": str, "array": list, "object": dict,
}  # fmt: skip
TYPES = frozenset((*_TYPES, "integer", "number"))


@dataclass(frozen=True, slots=True)
class Enforced:
    """What a backend holds an output to."""

    backend: str
    whole: frozenset[str]  # of $ref, const, enum, anyOf, oneOf, allOf
    by_type: dict[str, frozenset[str]]  # keywords enforced where the node has this type
    combines: bool  # keywords that say nothing of one another may stand side by side, a type may be absent
    formats: frozenset[str] = frozenset()
    excludes: tuple[tuple[str, str], ...] = ()  # pairs of which one is dropped silently
    needs: tuple[tuple[str, str], ...] = ()  # the first is dropped silently without the second
    recursive: bool = True
    untyped: bool = True  # takes {}, which everything matches
    told_types: bool = True  # keywords stand beside a type that they are of
    plain_names: bool = False  # names of properties are written without JSON's escapes
    skips_anchors: bool = False  # and lookahead, in patterns
    reads_spelling: bool = False  # patterns are matched against JSON's spelling of a string, escapes and all

    @property
    def keywords(self) -> frozenset[str]:
        return self.whole.union(*self.by_type.values())


def check_schema(schema: Any, enforced: Enforced) -> None:
    """Raise ValueError where the schema is none, NotEnforced where outputs could break it."""
    nodes = list(_nodes(schema, "#"))
    places = frozenset(node.path for node in nodes)
    for node in nodes:
        _Check(node, schema, enforced, places).run()
    if not enforced.recursive and _is_recursive(schema, schema, ()):
        raise NotEnforced(f"{enforced.backend} takes no recursive $ref: use another backend")


@dataclass(frozen=True, slots=True)
class Node:
    path: str  # "#/properties/name"
    value: Any


def _nodes(schema: Any, path: str) -> Iterator[Node]:
    """The schema and every schema in it."""
    yield Node(path, schema)
    if not isinstance(schema, dict):
        return
    for name in _SINGLE:
        if name in schema:
            yield from _nodes(schema[name], f"{path}/{name}")
    for name in _LISTS:
        inner = schema.get(name, [])
        if not isinstance(inner, list) or (name in schema and not inner):
            raise ValueError(f"invalid schema at {path}: {name} is {inner!r}, not a list of schemas")
        for index, one in enumerate(inner):
            yield from _nodes(one, f"{path}/{name}/{index}")
    for name in _MAPS:
        inner = schema.get(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"invalid schema at {path}: {name} is {inner!r}, not an object of schemas")
        for key, one in inner.items():
            yield from _nodes(one, f"{path}/{name}/{key}")


@dataclass(frozen=True, slots=True)
class _Check:
    """One node against the list."""

    node: Node
    root: Any
    enforced: Enforced
    places: frozenset[str]  # of the schemas in the root

    def run(self) -> None:
        value = self.node.value
        if isinstance(value, bool):
            self._check_bool()
            return
        if not isinstance(value, dict):
            raise ValueError(f"invalid schema at {self.node.path}: {value!r} is neither an object nor a bool")
        keywords = [name for name in value if name not in ANNOTATIONS]
        _check_values(self.node)
        self._check_known(keywords)
        self._check_ref()
        self._check_pairs(keywords)
        self._check_pattern()
        self._check_spelling()
        self._check_names()
        if self.enforced.combines:
            return
        self._check_shape(keywords)

    def _refuse(self, what: str) -> NotEnforced:
        return NotEnforced(f"{self.enforced.backend} does not enforce {what} (at {self.node.path})")

    def _check_bool(self) -> None:
        # `additionalProperties: false` is common, and known to those who list the keyword.
        if self.node.value is False and self.node.path.rpartition("/")[2] not in _SINGLE:
            raise self._refuse("the schema false, which nothing matches")

    def _check_known(self, keywords: list[str]) -> None:
        for name in keywords:
            if name not in self.enforced.keywords and name != "type":
                raise self._refuse(f"the keyword {name!r}")
        named = self.node.value.get("format")
        if named is not None and named not in self.enforced.formats:
            raise self._refuse(f"the format {named!r}")

    def _check_ref(self) -> None:
        ref = self.node.value.get("$ref")
        if ref is not None and (ref not in self.places or resolve(ref, self.root) is None):
            raise self._refuse(f"$ref {ref!r}: it takes those that lead to a place in this schema")

    def _check_pairs(self, keywords: list[str]) -> None:
        for one, other in self.enforced.excludes:
            if one in keywords and other in keywords:
                raise self._refuse(f"{other!r} beside {one!r}")
        for one, other in self.enforced.needs:
            if one in keywords and other not in keywords:
                raise self._refuse(f"{one!r} without {other!r}")

    def _check_pattern(self) -> None:
        pattern = self.node.value.get("pattern", "")
        lost = dropped(pattern) if self.enforced.skips_anchors else None
        if lost is not None:
            raise self._refuse(f"the pattern {pattern!r}, for {lost}")

    def _check_spelling(self) -> None:
        value = self.node.value
        if not self.enforced.reads_spelling:
            return
        if _is_spelled_apart(value.get("pattern", "")):
            raise self._refuse(f"the pattern {value['pattern']!r}, for its escapes or quotes")

    def _check_names(self) -> None:
        value = self.node.value
        odd = [
            name
            for name in value.get("properties", {})
            if json.dumps(name, ensure_ascii=False) != f'"{name}"'
        ]
        if odd and self.enforced.plain_names:
            raise self._refuse(f"the property name {odd[0]!r}")
        missing = [name for name in value.get("required", ()) if name not in value.get("properties", {})]
        if missing and not self.enforced.combines:
            raise self._refuse(f"'required' of {missing[0]!r}, which is not among the properties")

    def _check_shape(self, keywords: list[str]) -> None:
        value = self.node.value
        whole = [name for name in keywords if name in _WHOLE]
        beside = [name for name in keywords if name not in whole[:1]]
        if whole:
            if whole[0] in ("const", "enum") and beside == ["type"]:
                self._check_enum(value.get("enum", [value.get("const")]))
            elif beside:
                raise self._refuse(f"{beside[0]!r} beside {whole[0]!r}")
            return
        types = types_of(value)
        if not types and not self.enforced.told_types:
            types = list(TYPES)
        if not types and (keywords or not self.enforced.untyped):
            raise self._refuse(
                f"{keywords[0]!r} without a 'type' beside it" if keywords else "a missing 'type'"
            )
        for name in beside:
            if name != "type" and not any(name in self.enforced.by_type[one] for one in types):
                raise self._refuse(f"{name!r} of the type {' or '.join(types)}")

    def _check_enum(self, values: list[Any]) -> None:
        types = types_of(self.node.value)
        for one in values:
            if not any(is_of(one, kind) for kind in types):
                raise self._refuse(f"'type' beside the value {one!r}, which is of another")


def _check_values(node: Node) -> None:
    """What is wrong with a keyword's own value, where a backend might look away."""
    value = node.value
    for kind in types_of(value):
        if kind not in TYPES:
            raise ValueError(f"invalid schema at {node.path}: there is no type {kind!r}")
    for name, kinds in _VALUES.items():
        if name in value and (not isinstance(value[name], kinds) or isinstance(value[name], bool)):
            raise ValueError(f"invalid schema at {node.path}: {name} is {value[name]!r}")
    if any(not isinstance(name, str) for name in value.get("required", ())):
        raise ValueError(f"invalid schema at {node.path}: required is {value['required']!r}")
    if "enum" in value and not value["enum"]:
        raise ValueError(f"invalid schema at {node.path}: enum is empty")


_NUMBER = int | float
_VALUES: dict[str, Any] = {
    "required": list, "enum": list, "pattern": str, "format": str, "$ref": str,
    "minimum": _NUMBER, "maximum": _NUMBER, "exclusiveMinimum": _NUMBER, "exclusiveMaximum": _NUMBER,
    "multipleOf": _NUMBER, "minLength": int, "maxLength": int, "minItems": int, "maxItems": int,
    "minProperties": int, "maxProperties": int,
}  # fmt: skip


# What a pattern may escape: classes and signs that JSON spells like anybody else.
_PLAIN_ESCAPES = re.compile(r"\\[wWdDsSbB.+*?()\[\]{}|^$/\-]")


def _is_spelled_apart(pattern: str) -> bool:
    """Whether a pattern may ask for characters that JSON escapes."""
    rest = _PLAIN_ESCAPES.sub("", pattern)
    return "\\" in rest or '"' in rest or any(ord(sign) < 32 for sign in rest)


def types_of(value: dict[str, Any]) -> list[Any]:
    """The node's types; [] where it names none."""
    kinds = value.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def is_of(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a schema's type."""
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


def resolve(ref: str, root: Any) -> Any:
    """The schema a local $ref leads to; None where it leads elsewhere."""
    if ref == "#":
        return root
    if not ref.startswith("#/") or "%" in ref or "~" in ref:
        return None
    found = root
    for name in ref[2:].split("/"):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return found if isinstance(found, dict | bool) else None


def _is_recursive(schema: Any, root: Any, inside: tuple[str, ...]) -> bool:
    """Whether a $ref leads back to where it stands."""
    refs = {
        node.value["$ref"]
        for node in _nodes(schema, "#")
        if isinstance(node.value, dict) and "$ref" in node.value
    }
    return any(
        ref == "#" or ref in inside or _is_recursive(resolve(ref, root), root, (*inside, ref)) for ref in refs
    )
