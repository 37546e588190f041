"""The backend outlines (outlines_core): regular languages, so no EBNF and no recursion."""

from __future__ import annotations

import json
import re
from typing import Any

from workbench.structured.enforced import OUTLINES
from workbench.structured.grammar import (
    MOST_FORCED,
    CompiledGrammar,
    NotEnforced,
    Row,
    Spec,
    Vocabulary,
    allow,
    allow_only,
    check_begins,
    forced_by,
)
from workbench.structured.schema import check_schema


class Outlines:
    """Compiles with outlines_core: to a regex, then to an automaton over tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import outlines_core

        self._library: Any = outlines_core
        self._vocabulary = vocabulary
        spelled: dict[bytes, list[int]] = {}
        for token_id, token in enumerate(vocabulary.tokens):
            if token:
                spelled.setdefault(token, []).append(token_id)
        self._tokens = outlines_core.Vocabulary(vocabulary.eos_token_ids[0], spelled)

    def check(self, spec: Spec) -> None:
        """Raises ValueError for what is refused whatever tokens spell.

        Of a schema its automaton is left out, which may take seconds however small the vocabulary is.
        """
        if spec.kind == "json":
            self._check_list(spec)
            self._regex(spec)
            return
        check_begins(self.compile(spec), self._vocabulary, "outlines")

    def compile(self, spec: Spec) -> CompiledGrammar:
        """Raises ValueError for what outlines cannot read or would not enforce."""
        self._check_list(spec)
        try:
            index = self._library.Index(self._regex(spec), self._tokens)
        except (ValueError, TypeError) as error:
            raise ValueError(f"outlines cannot compile the {spec.kind}: {error}") from error
        return _Compiled(self._library, index, self._vocabulary)

    def _check_list(self, spec: Spec) -> None:
        if spec.kind not in ("json", "regex", "choice"):
            raise NotEnforced(f"outlines takes no {spec.kind}: use the backend xgrammar or guidance")
        if spec.kind == "json":
            check_schema(json.loads(spec.text), OUTLINES)
        if spec.kind == "choice":
            _check_choices(json.loads(spec.text))

    def _regex(self, spec: Spec) -> str:
        if spec.kind == "regex":
            return spec.text
        if spec.kind == "choice":
            return "|".join(f"({re.escape(choice)})" for choice in json.loads(spec.text))
        space = spec.whitespace_pattern
        if space is None and not spec.any_whitespace:
            space = ""
        try:
            return str(self._library.json_schema.build_regex_from_schema(spec.text, space))
        except (ValueError, TypeError) as error:
            raise ValueError(f"outlines cannot compile the {spec.kind}: {error}") from error


def _check_choices(choices: list[str]) -> None:
    """Where a text may end, outlines_core 0.2 forgets what goes on for more than one token."""
    for one in choices:
        longer = [other for other in choices if other.startswith(one) and other != one]
        if longer:
            raise NotEnforced(f"outlines never writes the choice {longer[0]!r}, which begins with {one!r}")


class _Compiled:
    def __init__(self, library: Any, index: Any, vocabulary: Vocabulary) -> None:
        self._library = library
        self._index = index
        self._vocabulary = vocabulary

    def start(self) -> OutlinesMatcher:
        return OutlinesMatcher(self._library.Guide(self._index, MOST_FORCED), self._vocabulary)


class OutlinesMatcher:
    """One output in outlines' guide, which does not hear of EOS."""

    def __init__(self, guide: Any, vocabulary: Vocabulary) -> None:
        self._guide = guide
        self._vocabulary = vocabulary
        self._ended = False

    def fill(self, row: Row) -> None:
        if self._ended:
            allow_only(row, self._vocabulary.eos_token_ids)
            return
        self._guide.write_mask_into(row.ctypes.data, row.size, row.itemsize)
        if self._guide.is_finished():
            allow(row, self._vocabulary.eos_token_ids)

    def accept(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._vocabulary.eos_token_ids:
            self._ended = bool(self._guide.is_finished())
            return self._ended
        if not self._guide.accepts_tokens([token_id]):
            return False
        self._guide.advance(token_id, return_tokens=False)
        return True

    def rollback(self, count: int) -> None:
        if count and self._ended:
            self._ended, count = False, count - 1
        if count:
            self._guide.rollback_state(count)

    @property
    def is_terminated(self) -> bool:
        return self._ended

    def forced(self) -> list[int]:
        return forced_by(self, self._vocabulary)
