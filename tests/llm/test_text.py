"""Text as it grows: whole characters, the same as decoded at once, and nothing a stop string takes back."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.llm import tiny
from workbench import SamplingParams
from workbench.text import INCOMPLETE, TextStream, decoder

WORDS = ["the", " bird", "sang", "你好", "😀", "👍", "é", " ", "o", "\n", "ż", "👩‍👩‍👧", "\ufffd", "x\u0301"]


@pytest.fixture(scope="module", params=["bytes", "spaced"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    write = {"bytes": tiny.write_tokenizer, "spaced": tiny.write_spaced_tokenizer}[request.param]
    return AutoTokenizer.from_pretrained(write(tmp_path_factory.mktemp(request.param)))


# Half of the sequences spell real text, half are any tokens, most of them broken characters.
spelled = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
noise = st.lists(st.integers(0, tiny.VOCAB - 1), max_size=24)
pieces = st.lists(st.one_of(spelled, noise), min_size=1, max_size=3)
cuts = st.lists(st.integers(1, 5), min_size=1, max_size=8)  # tokens that arrive together, over and over


def ids_of(tokenizer, parts: list) -> list[int]:
    found: list[int] = []
    for part in parts:
        found += tokenizer.encode(part, add_special_tokens=False) if isinstance(part, str) else part
    return found


def knows_every_byte(tokenizer) -> bool:
    """Bytes are pieces like others; "spaced" calls a whole run of bytes broken when one of them is."""
    return "<0x00>" not in tokenizer.get_vocab()


def deltas(stream: TextStream, ids: list[int], sizes: list[int]) -> tuple[list[str], str | None, int]:
    """What is handed out, piece by piece; the stop string found, and after how many tokens."""
    shown: list[str] = []
    count = turn = 0
    found = None
    while count < len(ids) and found is None:
        for _ in range(min(sizes[turn % len(sizes)], len(ids) - count)):
            count += 1
            found = stream.feed(ids[:count])
            if found is not None:
                break
        if found is None:
            shown.append(stream.take(final=False))
        turn += 1
    stream.finish(ids[:count])
    shown.append(stream.take(final=True))
    return shown, found, count


@given(parts=pieces, sizes=cuts)
def test_streamed_text_is_the_text_decoded_at_once(tokenizer, parts: list, sizes: list[int]) -> None:
    ids = ids_of(tokenizer, parts)
    for params in (SamplingParams(), SamplingParams(skip_special_tokens=False)):
        decode = decoder(tokenizer, params)
        stream, unwatched = TextStream(decode), TextStream(decode)
        shown, _, _ = deltas(stream, ids, sizes)
        unwatched.finish(ids)
        assert "".join(shown) == stream.text == unwatched.text
        if INCOMPLETE not in decode(ids) or knows_every_byte(tokenizer):
            assert stream.text == decode(ids)


@given(parts=pieces, sizes=cuts)
def test_no_piece_but_the_last_ends_in_half_a_character(tokenizer, parts: list, sizes: list[int]) -> None:
    shown, _, _ = deltas(TextStream(decoder(tokenizer, SamplingParams())), ids_of(tokenizer, parts), sizes)
    assert not any(piece.endswith(INCOMPLETE) for piece in shown[:-1])


@given(text=spelled, sizes=cuts)
def test_whole_characters_stay_whole(tokenizer, text: str, sizes: list[int]) -> None:
    """Of real text, which ends with a whole character, no replacement character is ever made."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown, _, _ = deltas(TextStream(decoder(tokenizer, SamplingParams())), ids, sizes)
    assert "".join(shown) == text


def stopped(decode, ids: list[int], stops: list[str], min_tokens: int, include: bool) -> tuple[str, str, int]:
    """The law, the slow way: after which token a stop string stands in the text that is certain by then."""
    before = 0
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count]).rstrip(INCOMPLETE)
        places = [
            (text.find(stop, max(0, before - len(stop) + 1)), stop)
            for stop in stops
            if stop in text[max(0, before - len(stop) + 1) :]
        ]
        before = max(before, len(text))
        if places and count >= min_tokens:
            place, stop = min(places, key=lambda found: found[0])
            return text[: place + len(stop) * include], stop, count
    return decode(ids), "", len(ids)


@settings(max_examples=200)
@given(data=st.data(), parts=pieces, sizes=cuts, include=st.booleans(), min_tokens=st.integers(0, 6))
def test_a_stop_string_ends_the_text_wherever_tokens_part(
    tokenizer, data, parts: list, sizes: list[int], include: bool, min_tokens: int
) -> None:
    ids = ids_of(tokenizer, parts)
    decode = decoder(tokenizer, SamplingParams())
    text = decode(ids)
    if not knows_every_byte(tokenizer):
        assume(INCOMPLETE not in text)
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, max(0, len(text) - 1)))
        stops.append(text[begin : begin + data.draw(st.integers(1, 6))] or "never")
    stops = [stop.strip(INCOMPLETE) or "never" for stop in stops]
    stream = TextStream(decode, stops, include_stop=include, min_tokens=min_tokens)
    shown, found, count = deltas(stream, ids, sizes)
    expected, stop, end = stopped(decode, ids, stops, min_tokens, include)
    assert (stream.text, found or "", count) == (expected, stop, end)
    assert "".join(shown) == stream.text, "what was shown was taken back, or held back for good"
