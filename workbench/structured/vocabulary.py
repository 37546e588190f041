"""What the tokens of a transformers tokenizer spell, in bytes. Knows no grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.structured.grammar import Vocabulary


def read_vocabulary(tokenizer: Any, size: int, eos_token_ids: Sequence[int]) -> Vocabulary:
    """The bytes of each of `size` tokens; special ones, and those the tokenizer lacks, spell nothing."""
    try:
        import xgrammar
    except ImportError as error:
        raise ValueError("structured outputs need xgrammar: pip install xgrammar") from error
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    tokens = info.decoded_vocab
    special = {*tokenizer.all_special_ids, *eos_token_ids, *info.special_token_ids}
    special |= {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    spelled = tuple([b"" if i in special else bytes(token) for i, token in enumerate(tokens)])
    return Vocabulary(spelled + (b"",) * (size - len(spelled)), tuple(eos_token_ids))
