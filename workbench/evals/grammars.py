"""What grammar backends make of the JSON Schema Test Suite: schemas refused, instances wrongly let through.

Feeds each instance byte by byte; a model is not needed. Knows backends through their protocol alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.structured.grammar import BYTES, Backend, CompiledGrammar, Spec
from workbench.structured.specs import dump

(EOS,) = BYTES.eos_token_ids


class Group(NamedTuple):
    """One schema of the suite with its instances."""

    keyword: str  # the name of its file
    schema: Any
    tests: tuple[tuple[Any, bool], ...]  # instance, valid


class Finding(NamedTuple):
    """What a backend made of one keyword."""

    keyword: str
    backend: str
    accepted: int  # schemas
    refused: int
    invalid: int  # instances of the accepted schemas that those forbid
    wrongly_allowed: int  # of them
    valid: int
    not_produced: int  # valid instances the grammar has no way to write: narrower, not wrong


def read_suite(folder: Path) -> Iterator[Group]:
    """Every group of a folder of the suite, such as draft2020-12; its folder `optional` is left out."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no *.json: give a draft's folder of the JSON Schema Test Suite"
        )
    for file in files:
        for group in json.loads(file.read_text(encoding="utf-8")):
            tests = tuple((test["data"], test["valid"]) for test in group["tests"])
            yield Group(file.stem, group["schema"], tests)


def measure(groups: Sequence[Group], backend: Backend, name: str) -> list[Finding]:
    """A finding for each keyword, in the order of the groups."""
    keywords = dict.fromkeys(group.keyword for group in groups)
    return [_measure(kw, [g for g in groups if g.keyword == kw], backend, name) for kw in keywords]


def totals(findings: Sequence[Finding]) -> list[Finding]:
    """A finding for each backend over all keywords."""
    names = dict.fromkeys(finding.backend for finding in findings)
    return [Finding("all", name, *_sums([f for f in findings if f.backend == name])) for name in names]


def _sums(findings: Sequence[Finding]) -> list[int]:
    return [sum(counts) for counts in zip(*(finding[2:] for finding in findings), strict=True)]


def _measure(keyword: str, groups: Sequence[Group], backend: Backend, name: str) -> Finding:
    compiled = [(group, _compile(group.schema, backend)) for group in groups]
    results = [
        (valid, writes(grammar, data))
        for group, grammar in compiled
        if grammar is not None
        for data, valid in group.tests
    ]
    accepted = sum(grammar is not None for _, grammar in compiled)
    return Finding(
        keyword,
        name,
        accepted,
        len(groups) - accepted,
        invalid=sum(not valid for valid, _ in results),
        wrongly_allowed=sum(written and not valid for valid, written in results),
        valid=sum(valid for valid, _ in results),
        not_produced=sum(valid and not written for valid, written in results),
    )


def _compile(schema: Any, backend: Backend) -> CompiledGrammar | None:
    try:
        return backend.compile(Spec("json", dump(schema)))
    except ValueError:
        return None


def writes(grammar: CompiledGrammar, instance: Any) -> bool:
    """Whether the grammar lets an instance through, in the spelling of json.dumps."""
    matcher = grammar.start()
    text = json.dumps(instance, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return all(matcher.accept(byte) for byte in text) and matcher.accept(EOS)
