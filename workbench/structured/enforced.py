"""What each backend enforces of JSON Schema: explicit lists, held against the JSON Schema Test Suite.

`workbench eval grammars` measures them, as do random walks through their masks (tests/structured). A keyword
that is enforced in some company only stands in `excludes` or `needs`. Knows no backend's code.
"""

from __future__ import annotations

from workbench.structured.schema import Enforced

_NUMBER = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
_LENGTH = frozenset(("minLength", "maxLength"))
_ARRAY = frozenset(("items", "prefixItems", "minItems", "maxItems"))
_OBJECT = frozenset(("properties", "required", "additionalProperties"))
_NOTHING: frozenset[str] = frozenset()
_FORMATS = frozenset(
    ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)

# xgrammar 0.2.8 takes much more, and drops what it cannot express: pattern wins over the lengths, properties
# over propertyNames and patternProperties; uniqueItems, contains, not and dependentRequired are skipped, an
# overlapping oneOf is an anyOf, lookahead and anchors inside a pattern are ignored, and keywords beside $ref
# and anyOf count for nothing. What it gets wrong of the keywords listed here, `for_xgrammar` mends.
XGRAMMAR = Enforced(
    backend="xgrammar",
    whole=frozenset(("$ref", "const", "enum", "anyOf")),
    by_type={
        "null": _NOTHING,
        "boolean": _NOTHING,
        "integer": _NUMBER,
        "number": _NUMBER,
        "string": _LENGTH | {"pattern", "format"},
        "array": _ARRAY,
        "object": _OBJECT | {"minProperties", "maxProperties"},
    },
    combines=False,
    formats=_FORMATS,
    excludes=(
        ("pattern", "minLength"),
        ("pattern", "maxLength"),
        ("format", "minLength"),
        ("format", "maxLength"),
        ("format", "pattern"),
        ("additionalProperties", "minProperties"),  # a name that comes twice counts twice
    ),
    needs=(("minProperties", "properties"), ("maxProperties", "properties")),
    told_types=False,  # `for_xgrammar` tells them
    skips_anchors=True,
    reads_spelling=True,
)

# llguidance 1.9 intersects what stands side by side and refuses by itself most of what it lacks. Names that
# come twice count twice towards minProperties.
GUIDANCE = Enforced(
    backend="guidance",
    whole=frozenset(("$ref", "const", "enum", "anyOf", "oneOf", "allOf")),
    by_type={
        "null": _NOTHING,
        "boolean": _NOTHING,
        "integer": _NUMBER | {"multipleOf"},
        "number": _NUMBER | {"multipleOf"},
        "string": _LENGTH | {"pattern", "format"},
        "array": _ARRAY,
        "object": _OBJECT | {"patternProperties", "maxProperties"},
    },
    combines=True,
    formats=_FORMATS,
)

# outlines_core 0.2 skips bounds of numbers, and writes patterns, formats and names into JSON as they stand.
OUTLINES = Enforced(
    backend="outlines",
    whole=frozenset(("$ref", "const", "enum", "anyOf")),
    by_type={
        "null": _NOTHING,
        "boolean": _NOTHING,
        "integer": _NOTHING,
        "number": _NOTHING,
        "string": _LENGTH,
        "array": _ARRAY,
        "object": _OBJECT,
    },
    combines=False,
    excludes=(("prefixItems", "items"), ("prefixItems", "minItems"), ("prefixItems", "maxItems")),
    recursive=False,
    untyped=False,
    plain_names=True,
)
