"""The backend guidance (llguidance): all kinds but structural tags, and keywords of a schema combined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from workbench.structured.enforced import GUIDANCE
from workbench.structured.grammar import (
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


class Guidance:
    """Compiles with llguidance."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        self._vocabulary = vocabulary
        self._library: Any = llguidance
        wrapper = llguidance.TokenizerWrapper(_Pieces(vocabulary))
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens))

    def compile(self, spec: Spec) -> CompiledGrammar:
        """Raises ValueError for what llguidance cannot read or would not enforce."""
        grammar = self._grammar(spec)
        failed, messages = self._library.LLMatcher.validate_grammar_with_warnings(grammar, self._tokenizer)
        if failed or messages:
            raise ValueError(f"guidance cannot compile the {spec.kind}: {'; '.join(messages)}")
        return _Compiled(self._library, self._tokenizer, grammar, self._vocabulary)

    def check(self, spec: Spec) -> None:
        """Raises ValueError for what is refused whatever tokens spell."""
        if spec.kind == "grammar" and "<" in spec.text:
            self._lark(spec)  # it may speak of special tokens, which bytes have not
            return
        check_begins(self.compile(spec), self._vocabulary, "guidance")

    def _grammar(self, spec: Spec) -> str:
        matcher = self._library.LLMatcher
        if spec.kind == "structural_tag":
            raise NotEnforced("guidance takes no structural tags: use the backend xgrammar")
        if spec.kind == "regex":
            return str(matcher.grammar_from_regex(spec.text))
        if spec.kind in ("grammar", "choice"):
            return self._lark(spec)
        schema = json.loads(spec.text) if spec.kind == "json" else {"type": "object"}
        check_schema(schema, GUIDANCE)
        space: dict[str, Any] = {"whitespace_flexible": spec.any_whitespace}
        if spec.whitespace_pattern is not None:
            space["whitespace_pattern"] = spec.whitespace_pattern
        return str(matcher.grammar_from_json_schema(schema, overrides=space))

    def _lark(self, spec: Spec) -> str:
        try:
            return str(self._library.grammar_from(spec.kind, spec.text))
        except ValueError as error:
            raise ValueError(f"guidance cannot read the {spec.kind}: {error}") from error


class _Pieces:
    """The vocabulary as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        # One without a spelling would spoil the masks of all: it gets a name, and is told to be special.
        self.tokens = [token or b"<%d>" % i for i, token in enumerate(vocabulary.tokens)]
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.special_token_ids = [i for i, token in enumerate(vocabulary.tokens) if not token]
        self._ids = {token: i for i, token in enumerate(vocabulary.tokens) if token}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> Sequence[int]:
        """A way to spell text, the longest token first."""
        ids: list[int] = []
        begin = 0
        while begin < len(text):
            ends = range(min(len(text), begin + self._longest), begin, -1)
            end = next((end for end in ends if text[begin:end] in self._ids), None)
            if end is None:
                return ids
            ids.append(self._ids[text[begin:end]])
            begin = end
        return ids


class _Compiled:
    def __init__(self, library: Any, tokenizer: Any, grammar: str, vocabulary: Vocabulary) -> None:
        self._first = library.LLMatcher(tokenizer, grammar)
        self._vocabulary = vocabulary

    def start(self) -> GuidanceMatcher:
        return GuidanceMatcher(self._first.deep_copy(), self._vocabulary)


class GuidanceMatcher:
    """One output in llguidance's matcher, which does not hear of EOS."""

    def __init__(self, matcher: Any, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ended = False

    def fill(self, row: Row) -> None:
        if self._ended or self._matcher.is_stopped():
            self._check()
            allow_only(row, self._vocabulary.eos_token_ids)
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self._check()
        if self._matcher.is_accepting():
            allow(row, self._vocabulary.eos_token_ids)

    def _check(self) -> None:
        if self._matcher.is_error():
            # What follows the first line is the state of its parser.
            reason = str(self._matcher.get_error()).partition("\n")[0]
            raise RuntimeError(f"guidance gave up on the output: {reason}")

    def accept(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._vocabulary.eos_token_ids:
            self._ended = bool(self._matcher.is_accepting() or self._matcher.is_stopped())
            return self._ended
        return bool(self._matcher.try_consume_tokens([token_id]) == 1)

    def rollback(self, count: int) -> None:
        if count and self._ended:
            self._ended, count = False, count - 1
        if count:
            self._matcher.rollback(count)

    @property
    def is_terminated(self) -> bool:
        return self._ended

    def forced(self) -> list[int]:
        return forced_by(self, self._vocabulary)
