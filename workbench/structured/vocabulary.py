"""What the tokens of a transformers tokenizer spell, in bytes. Knows no grammar.

Two ways of spelling are read here: bytes as printable characters (GPT-2's, and Llama 3's), and "▁" for a
space with "<0x0A>" for a byte (SentencePiece with byte fallback, as in Llama 2). xgrammar reads the others;
these too, and alike, but it takes several times as long, in calls that keep every other thread waiting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.structured.grammar import Vocabulary

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_MOST_ODD = 0.01  # of a vocabulary of bytes are added tokens, which may spell otherwise


def read_vocabulary(tokenizer: Any, size: int, eos_token_ids: Sequence[int]) -> Vocabulary:
    """The bytes of each of `size` tokens; special ones, and those the tokenizer lacks, spell nothing."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {
        *tokenizer.all_special_ids,
        *eos_token_ids,
        *(i for i, token in added.items() if token.special),
    }
    spelled = _read(tokenizer, size) or _read_by_xgrammar(tokenizer, size)
    for token_id in special:
        if token_id < size:
            spelled[token_id] = b""
    return Vocabulary(tuple(spelled), tuple(eos_token_ids))


def _read(tokenizer: Any, size: int) -> list[bytes] | None:
    """What each token spells; None where that is none of the two ways."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is None:
        return None
    # No call into a library makes more than one token: between two, other threads have their turn.
    tokens = [backend.id_to_token(token_id) or "" for token_id in range(size)]
    for token_id, added in tokenizer.added_tokens_decoder.items():
        if token_id < size:
            tokens[token_id] = added.content  # the backend may say it as its normalizer would
    known = set(tokens)
    if sum(f"<0x{byte:02X}>" in known for byte in range(256)) >= 128:
        return [_with_fallback(token) for token in tokens]
    if sum(printed in known for printed in _PRINTED) < 128:
        return None
    spelled = [_of_bytes(token) for token in tokens]
    odd = [token for token, said in zip(tokens, spelled, strict=True) if said is None]
    if len(odd) > _MOST_ODD * size:
        return None
    return [token.encode() if said is None else said for token, said in zip(tokens, spelled, strict=True)]


def _with_fallback(token: str) -> bytes:
    if (byte := _BYTE.fullmatch(token)) is not None:
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


def _printed() -> str:
    """The character that stands for each byte: itself where it can be seen."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return "".join(chr(byte if byte in seen else 0x100 + hidden.index(byte)) for byte in range(256))


_PRINTED = _printed()
# Character -> the one that latin-1 writes as its byte; if it stands for none, one that latin-1 cannot write.
_WRITTEN = dict.fromkeys(range(256), "\uffff") | {
    ord(printed): chr(byte) for byte, printed in enumerate(_PRINTED)
}


def _of_bytes(token: str) -> bytes | None:
    """The bytes that its characters stand for; None where one of them stands for none."""
    try:
        return token.translate(_WRITTEN).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _read_by_xgrammar(tokenizer: Any, size: int) -> list[bytes]:
    try:
        import xgrammar
    except ImportError as error:
        raise ValueError("structured outputs need xgrammar: pip install xgrammar") from error
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    tokens = info.decoded_vocab
    special = set(info.special_token_ids)
    spelled = [b"" if i in special else bytes(token) for i, token in enumerate(tokens)]
    return spelled + [b""] * (size - len(spelled))
