"""Outputs drawn at random from a grammar's masks, byte by byte: what no model would write comes up too."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from workbench.evals.grammars import BYTES, EOS
from workbench.structured.backends import open_backend
from workbench.structured.grammar import CompiledGrammar, Spec, token_ids_of

PRINTABLE = range(33, 127)


def compile_json(backend: str, schema: Any, **options: Any) -> CompiledGrammar:
    return open_backend(backend, BYTES).compile(
        Spec("json", json.dumps(schema, ensure_ascii=False), **options)
    )


def walk(grammar: CompiledGrammar, dice: random.Random, limit: int = 300) -> str | None:
    """An output that ended; None for one that grew too long."""
    matcher, row, out = grammar.start(), np.zeros(BYTES.words, np.int32), bytearray()
    while len(out) < limit:
        matcher.fill(row)
        allowed = token_ids_of(row)
        assert allowed, f"nothing may follow {bytes(out)!r}"
        if EOS in allowed and (len(allowed) == 1 or dice.random() < 0.5):
            assert matcher.accept(EOS)
            assert matcher.is_terminated
            return out.decode(errors="replace")  # as tokenizers do
        token = _pick([byte for byte in allowed if byte != EOS], dice)
        assert matcher.accept(token), f"{token} is in the mask and refused after {bytes(out)!r}"
        out.append(token)
    return None


def _pick(allowed: list[int], dice: random.Random) -> int:
    """Closing signs often, other printable ones mostly, anything sometimes."""
    closing = [byte for byte in allowed if byte in b'"]}']
    if closing and dice.random() < 0.3:
        return dice.choice(closing)
    plain = [byte for byte in allowed if byte in PRINTABLE]
    return dice.choice(plain if plain and dice.random() < 0.9 else allowed)


def ended(grammar: CompiledGrammar, count: int, seed: int = 0) -> list[str]:
    """The outputs of `count` walks that ended."""
    dice = random.Random(seed)
    found = (walk(grammar, dice) for _ in range(count))
    return [output for output in found if output is not None]
