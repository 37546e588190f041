"""The backend xgrammar: every kind of constraint; JSON schemas as far as they are on its list."""

from __future__ import annotations

import json
from typing import Any

from workbench.structured.enforced import XGRAMMAR
from workbench.structured.grammar import (
    CompiledGrammar,
    NotEnforced,
    Row,
    Spec,
    Vocabulary,
    allow_only,
    check_begins,
    clear_padding,
    forced_by,
)
from workbench.structured.patterns import dropped
from workbench.structured.rewriting import for_xgrammar
from workbench.structured.schema import check_schema
from workbench.structured.specs import dump

_THREADS = 1  # that compile; the engine's own threads have the others


class XGrammar:
    """Compiles with xgrammar."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._vocabulary = vocabulary
        info = tokenizer_info(vocabulary)
        # No cache: the house keeps one, of a size that is known.
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=_THREADS, cache_enabled=False)

    def compile(self, spec: Spec) -> CompiledGrammar:
        """Raises ValueError for what xgrammar cannot read or would not enforce."""
        if spec.whitespace_pattern is not None:
            raise NotEnforced(
                "xgrammar has no whitespace_pattern: use disable_any_whitespace, or another backend"
            )
        try:
            return _Compiled(self._compile(spec), self._vocabulary)
        except RuntimeError as error:
            raise ValueError(f"xgrammar cannot compile the {spec.kind}: {_reason(error)}") from error

    def check(self, spec: Spec) -> None:
        """Raises ValueError for what is refused whatever tokens spell."""
        if _names_tokens(spec):
            if spec.kind == "structural_tag":
                _checked_tags(json.loads(spec.text))
            return
        check_begins(self.compile(spec), self._vocabulary, "xgrammar")

    def _compile(self, spec: Spec) -> Any:
        if spec.kind == "regex":
            return self._compiler.compile_regex(_checked_regex(spec.text))
        if spec.kind == "grammar":
            return self._compiler.compile_grammar(spec.text)
        if spec.kind == "choice":
            return self._compiler.compile_grammar(f"root ::= {_alternatives(json.loads(spec.text))}")
        if spec.kind == "structural_tag":
            return self._compile_tags(json.loads(spec.text))
        schema = json.loads(spec.text) if spec.kind == "json" else {"type": "object"}
        check_schema(schema, XGRAMMAR)
        separators = None if spec.any_whitespace else (",", ":")
        return self._compiler.compile_json_schema(
            dump(for_xgrammar(schema)), any_whitespace=spec.any_whitespace, separators=separators
        )

    def _compile_tags(self, tags: Any) -> Any:
        import xgrammar

        tags = _checked_tags(tags)
        if "structures" not in tags:
            return self._compiler.compile_structural_tag(json.dumps(tags))
        try:
            items = [
                xgrammar.StructuralTagItem(begin=s["begin"], schema=json.dumps(s["schema"]), end=s["end"])
                for s in tags["structures"]
            ]
            return self._compiler.compile_structural_tag(items, tags["triggers"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                "structural_tag: structures have begin, schema and end, and stand beside triggers"
            ) from error


def tokenizer_info(vocabulary: Vocabulary) -> Any:
    """xgrammar's TokenizerInfo. Not by its constructor, which has all other threads wait while it sorts."""
    import xgrammar

    said = json.loads(xgrammar.TokenizerInfo([], vocab_size=len(vocabulary.tokens)).dump_metadata())
    said["stop_token_ids"] = list(vocabulary.eos_token_ids)
    return xgrammar.TokenizerInfo.from_vocab_and_metadata(list(vocabulary.tokens), json.dumps(said))


class _Compiled:
    def __init__(self, compiled: Any, vocabulary: Vocabulary) -> None:
        self._compiled = compiled
        self._vocabulary = vocabulary

    def start(self) -> XGrammarMatcher:
        return XGrammarMatcher(self._compiled, self._vocabulary)


class XGrammarMatcher:
    """One output in xgrammar's matcher."""

    def __init__(self, compiled: Any, vocabulary: Vocabulary) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._vocabulary = vocabulary

    def fill(self, row: Row) -> None:
        if self.is_terminated:
            allow_only(row, self._vocabulary.eos_token_ids)
            return
        row.fill(-1)  # stays where everything may come
        self._matcher.fill_next_token_bitmask(row[None])
        clear_padding(row, len(self._vocabulary.tokens))

    def accept(self, token_id: int) -> bool:
        return not self.is_terminated and bool(self._matcher.accept_token(token_id))

    def rollback(self, count: int) -> None:
        if count:
            self._matcher.rollback(count)

    @property
    def is_terminated(self) -> bool:
        return bool(self._matcher.is_terminated())

    def forced(self) -> list[int]:
        return forced_by(self, self._vocabulary)


def _names_tokens(spec: Spec) -> bool:
    """Whether it may speak of tokens by their ids or names, which bytes have not."""
    return (spec.kind == "structural_tag" and "token" in spec.text) or (
        spec.kind == "grammar" and "Token" in spec.text
    )


def _alternatives(choices: list[str]) -> str:
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _checked_tags(tags: Any) -> Any:
    """A structural tag, its patterns and JSON schemas checked, the latter said as xgrammar enforces them."""
    if isinstance(tags, list):
        return [_checked_tags(inner) for inner in tags]
    if not isinstance(tags, dict):
        return tags
    return {name: _checked_part(name, value) for name, value in tags.items()}


def _checked_part(name: str, value: Any) -> Any:
    if name == "pattern" and isinstance(value, str):
        return _checked_regex(value)
    if name not in ("schema", "json_schema"):
        return _checked_tags(value)
    check_schema(value, XGRAMMAR)
    return for_xgrammar(value)


def _checked_regex(pattern: str) -> str:
    if (lost := dropped(pattern)) is not None:
        raise NotEnforced(f"xgrammar does not enforce the regex {pattern!r}, for {lost}")
    return pattern


def _reason(error: RuntimeError) -> str:
    """Its message without time, file and line."""
    return str(error).strip().partition(": ")[2] or str(error).strip()
