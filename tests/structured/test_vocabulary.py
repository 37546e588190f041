"""What tokens spell, as xgrammar reads it, whose reading is slow; and what xgrammar is told of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xgrammar
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast

import workbench
from tests.llm import tiny
from workbench.bench.vocabulary import write_tokenizer as write_large
from workbench.structured import vocabulary
from workbench.structured.grammar import BYTES, Vocabulary
from workbench.structured.vocabulary import read_vocabulary
from workbench.structured.xgrammar import tokenizer_info
from workbench.tokenizer import load_tokenizer

ZOO = Path(workbench.__file__).parent / "models" / "zoo" / "weights" / "wren-8m"


def zoo(folder: Path) -> Path:
    return ZOO


def large(folder: Path) -> Path:
    write_large(folder, 3000)
    return folder


FOLDERS: list[Callable[[Path], Path]] = [tiny.write_tokenizer, tiny.write_spaced_tokenizer, zoo, large]


def with_added(tokenizer: Any) -> Any:
    """Tokens that are no pieces of the model: special, plain, and of characters no byte is written as."""
    tokenizer.add_tokens([AddedToken("<call>"), AddedToken("two words"), AddedToken("日本"), "\n\n"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


@pytest.mark.parametrize("write", FOLDERS)
def test_what_is_read_here_is_what_xgrammar_reads(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_added(load_tokenizer(write(tmp_path), trust_remote_code=False))
    size = len(tokenizer) + 40  # a model may have more rows than there are tokens
    eos = [tokenizer.eos_token_id]
    read = read_vocabulary(tokenizer, size, eos)
    monkeypatch.setattr(vocabulary, "_read", lambda *_: None)
    assert read == read_vocabulary(tokenizer, size, eos)
    assert read.tokens[tokenizer.pad_token_id] == b""
    assert read.tokens[tokenizer.convert_tokens_to_ids("<call>")] == b"<call>"
    assert len(read.tokens) == size


def test_words_without_bytes_are_left_to_xgrammar() -> None:
    words = {"[UNK]": 0, "owl": 1, "naïve": 2, "##s": 3}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece(words)))
    assert vocabulary._read(tokenizer, 4) is None
    assert read_vocabulary(tokenizer, 4, [0]).tokens[2] == "naïve".encode()


@pytest.mark.parametrize(
    "told", [BYTES, Vocabulary((b"", b"a", b"ab", b"\xff", b"a", b""), (5, 0)), Vocabulary((b"a",), (0,))]
)
def test_xgrammar_is_told_the_same_as_by_its_constructor(told: Vocabulary) -> None:
    built = xgrammar.TokenizerInfo(
        list(told.tokens), vocab_size=len(told.tokens), stop_token_ids=list(told.eos_token_ids)
    )
    assert tokenizer_info(told).serialize_json() == built.serialize_json()
