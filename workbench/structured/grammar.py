"""What a grammar is to the rest of the house: a specification, a vocabulary, and a matcher that fills masks.

Knows no backend and no schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Row = npt.NDArray[np.int32]  # [words]; bit i % 32 of word i // 32 is set: token i may come

Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]

MOST_FORCED = 16  # tokens looked ahead at once; a backend has to remember so many to take them back


class Spec(NamedTuple):
    """A constraint in its canonical form: equal constraints are equal values."""

    kind: Kind
    text: str  # JSON for json, choice and structural_tag; the pattern or grammar itself; "" for json_object
    any_whitespace: bool = True  # between JSON's tokens
    whitespace_pattern: str | None = None  # a regex of what may stand there instead


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What every token spells. A token that spells nothing, a special one say, matches no text."""

    tokens: tuple[bytes, ...]  # by id, as many as the logits have columns
    eos_token_ids: tuple[int, ...]  # any of them ends the output where the grammar may end

    @property
    def words(self) -> int:
        """Of a mask's row."""
        return -(-len(self.tokens) // 32)


# Each byte a token, behind them EOS.
BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b""), (256,))


class Matcher(Protocol):
    """One output on its way through a grammar."""

    def fill(self, row: Row) -> None:
        """Write the tokens that may come next; EOS where the text may end, nothing else where it has to."""
        ...

    def accept(self, token_id: int) -> bool:
        """The token came; False, and nothing changed, where it may not."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last tokens accepted, at most MOST_FORCED."""
        ...

    @property
    def is_terminated(self) -> bool:
        """EOS came."""
        ...

    def forced(self) -> list[int]:
        """The tokens that have to come next, as long as there is no choice; EOS is not among them."""
        ...


class CompiledGrammar(Protocol):
    """A grammar ready for use, shared by all outputs that have to match it."""

    def start(self) -> Matcher:
        """A matcher at the beginning of an output."""
        ...


class Backend(Protocol):
    """A library that compiles grammars for one vocabulary."""

    def compile(self, spec: Spec) -> CompiledGrammar:
        """Raises ValueError, before anything is generated, for what it cannot read or would not enforce."""
        ...

    def check(self, spec: Spec) -> None:
        """Raises ValueError for what `compile` would refuse, as far as that is told quickly.

        Asked of a backend over BYTES: it takes milliseconds, and says nothing of the vocabulary.
        """
        ...


class NotEnforced(ValueError):
    """A backend would accept the constraint and not hold the output to it."""


def check_begins(grammar: CompiledGrammar, vocabulary: Vocabulary, backend: str) -> None:
    """Some output must be able to begin: a $ref that leads back to itself, say, has none.

    Raises:
        ValueError: none can.
    """
    row = np.zeros(vocabulary.words, np.int32)
    try:
        grammar.start().fill(row)
    except RuntimeError as error:
        raise ValueError(f"{backend}: no output matches the constraint ({error})") from error
    if not row.any():
        raise ValueError(f"{backend}: no output matches the constraint")


def forced_by(matcher: Matcher, vocabulary: Vocabulary) -> list[int]:
    """Tokens without an alternative, found by going ahead and coming back."""
    row = np.zeros(vocabulary.words, np.int32)
    forced: list[int] = []
    while len(forced) < MOST_FORCED and not matcher.is_terminated:
        matcher.fill(row)
        allowed = token_ids_of(row)
        if len(allowed) != 1 or allowed[0] in vocabulary.eos_token_ids:
            break
        assert matcher.accept(allowed[0]), "a token the mask allows is refused"
        forced.append(allowed[0])
    matcher.rollback(len(forced))
    return forced


def token_ids_of(row: Row) -> list[int]:
    """The tokens a mask allows, ascending."""
    ids: list[int] = np.unpackbits(row.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    return ids


def allow(row: Row, token_ids: Sequence[int]) -> None:
    """Set the tokens' bits."""
    for token_id in token_ids:
        row.view(np.uint32)[token_id // 32] |= np.uint32(1 << (token_id % 32))


def allow_only(row: Row, token_ids: Sequence[int]) -> None:
    """Set the tokens' bits and no other."""
    row.fill(0)
    allow(row, token_ids)


def clear_padding(row: Row, size: int) -> None:
    """Clear what lies in the last word behind a vocabulary's end."""
    if size % 32:
        row.view(np.uint32)[-1] &= np.uint32((1 << (size % 32)) - 1)
