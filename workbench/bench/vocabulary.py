"""A byte-level tokenizer of any size, for engines whose weights are random: grammars need to know what tokens
spell. Its tokens are like those of a trained one in length and in kind, and say nothing. Knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

EOS = "<|end|>"  # the last token

_LETTERS = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
_LIKELY = 1 / np.arange(3, 3 + len(_LETTERS))  # by rank, as in Zipf's law
_MARKS = b"\"'{}[]()<>:;,.!?-_=+*/\\&%$#@|~^`"


def write_tokenizer(folder: Path, size: int) -> int:
    """Write tokenizer.json and what belongs to it; the id of its EOS token.

    Raises:
        ValueError: there is no room for all bytes and EOS.
    """
    if size <= 256:
        raise ValueError(f"a byte-level vocabulary of {size}: it has at least 257 tokens")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    printed = _printed()
    tokens = ["".join(printed[byte] for byte in spelled) for spelled in islice(_spelled(), size - 1)]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(EOS, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return len(tokens)


def _spelled() -> Iterator[bytes]:
    """Every byte; numbers, marks and pairs of marks; then words without end, with and without a space."""
    seen = {bytes([byte]) for byte in range(256)}
    yield from sorted(seen)
    numbers = (str(number).encode() for number in range(10, 1000))
    pairs = (bytes([a, b]) for a in _MARKS + b" \n" for b in _MARKS + b" \n")
    for spelled in (*numbers, *pairs):
        seen.add(spelled)
        yield spelled
    dice = np.random.default_rng(0)
    while True:
        length = int(dice.integers(2, 12))
        word = dice.choice(_LETTERS, length, p=_LIKELY / _LIKELY.sum()).astype(np.uint8).tobytes()
        for spelled in (word, b" " + word, word.capitalize()):
            if spelled not in seen:
                seen.add(spelled)
                yield spelled


def _printed() -> dict[int, str]:
    """Byte -> the character that stands for it in tokenizer.json (GPT-2's table): itself where it is seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in seen}
    hidden = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(0x100 + place) for place, byte in enumerate(hidden)}
