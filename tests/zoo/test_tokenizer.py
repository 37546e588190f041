"""The shared tokenizer: loses nothing, agrees with the fast encoder, speaks the corpus' chat format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from workbench.models.zoo import tokens
from workbench.models.zoo.corpus import tasks

ENCODER = tokens.Encoder(tokens.FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(tokens.FOLDER))


@given(st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    assert ENCODER.core.decode(ENCODER.encode(text), skip_special_tokens=False) == text


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_the_fast_encoder_equals_the_tokenizer_on_ascii(text: str) -> None:
    assert ENCODER.encode(text) == ENCODER.core.encode(text, add_special_tokens=False).ids


def test_the_fast_encoder_equals_the_tokenizer_on_the_corpus() -> None:
    for name in tasks.NAMES:
        for index in range(10):
            text = tasks.make(name, "heldout", 1, index).text
            assert ENCODER.encode(text) == ENCODER.core.encode(text, add_special_tokens=False).ids


def test_transformers_reads_the_folder(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == tokens.VOCAB_SIZE
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (tokens.PAD_ID, tokens.BOS_ID, tokens.EOS_ID)
    assert tokenizer("A fox.")["input_ids"] == [tokens.BOS_ID, *ENCODER.encode("A fox.")]


def test_digits_are_pieces_of_their_own() -> None:
    assert len(ENCODER.encode("1234567")) == 7


def test_the_chat_template_writes_the_corpus_format(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
             {"role": "user", "content": "What is 1 + 2?"}]  # fmt: skip
    written = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert written == "<|bos|><|user|>Hi<|assistant|>Hello!<|eos|><|user|>What is 1 + 2?<|assistant|>"
    single = next(
        item for i in range(99) if (item := tasks.make("chat", "train", 0, i)).prompt.count("<|") == 2
    )
    asked = single.prompt.removeprefix("<|user|>").removesuffix("<|assistant|>")
    turn = [{"role": "user", "content": asked}]
    assert (
        tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        == f"<|bos|>{single.prompt}"
    )


def test_the_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role robot: use system, user or assistant"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "Hi"}], tokenize=False)


def test_only_what_the_model_is_to_write_and_the_end_are_targets() -> None:
    item = tasks.make("sorting", "train", 0, 0)
    ids, targets = ENCODER.encode_segments(item.segments)
    assert (ids[0], ids[-1]) == (tokens.BOS_ID, tokens.EOS_ID)
    written = [token for token, target in zip(ids, targets, strict=True) if target]
    assert ENCODER.core.decode(written, skip_special_tokens=False) == item.completion + tokens.EOS
