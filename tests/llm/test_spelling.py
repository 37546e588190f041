"""The texts of single tokens, of which several may make one character, add up to the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.llm import tiny
from workbench.models.folder import resolve
from workbench.models.zoo.registry import DEFAULT
from workbench.text import INCOMPLETE, speller
from workbench.token_logprobs import CONTEXT

TEXTS = ["the old tree", "你好 😀👍", "naïve café, π ≈ 3", "a😀b", "  こんにちは\n", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢"]


@pytest.fixture(scope="module", params=["zoo", "tiny", "spaced"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerBase:
    if request.param == "zoo":
        return AutoTokenizer.from_pretrained(resolve(f"zoo/{DEFAULT}"))
    write = tiny.write_tokenizer if request.param == "tiny" else tiny.write_spaced_tokenizer
    folder: Path = write(tmp_path_factory.mktemp(request.param))
    return AutoTokenizer.from_pretrained(folder)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    spell = speller(tokenizer)
    return [spell(token_id, tuple(ids[max(0, i - CONTEXT) : i])) for i, token_id in enumerate(ids)]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    spelt = "".join(pieces(tokenizer, ids))
    # A decoder in the manner of Llama 2 drops the space ahead of whatever it is handed by itself.
    assert spelt.replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_of_a_whole_text_is_a_replacement_character(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not any(INCOMPLETE in piece for piece in pieces(tokenizer, ids))


def test_a_byte_that_is_no_character_there_takes_nothing_from_its_neighbours() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"zoo/{DEFAULT}"))
    spell = speller(tokenizer)
    (the,) = tokenizer.encode(" the", add_special_tokens=False)
    first, second, third = tokenizer.encode("你", add_special_tokens=False)
    assert spell(second, (the,)) == "", "a continuation of nothing"
    assert spell(third, (the, first)) == "", "the last byte where the middle one is due"
    assert spell(third, (the, first, second)) == "你"
    assert spell(the, (first, second)) == " the", "what stands alone needs no context"
    assert spell(first, (second, third)) == ""
