"""When a request ends, why, with which tokens and text; the same for generate, stream and overlapped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM, CompletionOutput, RequestOutputKind, SamplingParams

PROMPT = list(range(40, 60))
COUNT = 40
LETTERS = [*range(40, 64), *range(259, tiny.VOCAB)]  # some of ASCII, and the pieces longer than a byte


def greedy(**options) -> SamplingParams:
    options = {"max_tokens": COUNT, "ignore_eos": True, "allowed_token_ids": LETTERS} | options
    return SamplingParams(temperature=0, repetition_penalty=1.8, **options)


Complete = Callable[[SamplingParams], CompletionOutput]


@pytest.fixture(params=["generate", "overlapped", "stream", "by hand"])
def complete(request: pytest.FixtureRequest, open_llm: Open) -> Complete:
    """One way to complete PROMPT; it also checks that the way adds up."""
    llm = open_llm(async_scheduling=request.param == "overlapped")

    def generated(params: SamplingParams) -> CompletionOutput:
        return llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0]

    def streamed(params: SamplingParams) -> CompletionOutput:
        pieces = [output.outputs[0] for output in llm.stream(PROMPT, params)]
        assert all(piece.finish_reason is None for piece in pieces[:-1])
        return joined(pieces)

    def stepped(params: SamplingParams) -> CompletionOutput:
        params.output_kind = RequestOutputKind.DELTA
        llm.add_request(PROMPT, params)
        pieces = []
        while llm.has_unfinished_requests():
            pieces += [output.outputs[0] for output in llm.step().outputs]
        return joined(pieces)

    return {"stream": streamed, "by hand": stepped}.get(request.param, generated)


def joined(pieces: list[CompletionOutput]) -> CompletionOutput:
    return CompletionOutput(
        index=0,
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        finish_reason=pieces[-1].finish_reason,
        stop_reason=pieces[-1].stop_reason,
    )


@pytest.fixture(scope="module")
def whole(models: Models) -> tuple[list[int], list[str]]:
    """The tokens without any stop, and the text after each of them."""
    with LLM(str(models.folder()), device="cpu", max_model_len=256) as llm:
        ids = list(llm.generate([PROMPT], greedy(), use_tqdm=False)[0].outputs[0].token_ids)
        tokenizer = llm.get_tokenizer()
    return ids, [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]


def test_max_tokens_ends_with_length(complete: Complete, whole) -> None:
    for count in (1, 2, 17):
        done = complete(greedy(max_tokens=count))
        assert (list(done.token_ids), done.finish_reason, done.stop_reason) == (
            whole[0][:count],
            "length",
            None,
        )
        assert done.text == whole[1][count - 1]


def test_a_stop_string_cuts_text_and_tokens_wherever_it_lies(complete: Complete, whole) -> None:
    """Every string of one to five characters that is in the text: inside a token, across two or three."""
    ids, texts = whole
    text = texts[-1].rstrip("\ufffd")
    inside = across = 0
    for begin in range(0, len(text) - 5, 7):
        stop = text[begin : begin + 1 + begin % 5]
        if "\ufffd" in stop:
            continue
        end = next(i for i, t in enumerate(texts) if stop in t.rstrip("\ufffd"))
        for include in (False, True):
            done = complete(greedy(stop=[stop, "never to be found"], include_stop_str_in_output=include))
            first = text.find(stop)
            assert done.text == text[: first + len(stop) * include]
            assert (list(done.token_ids), done.finish_reason, done.stop_reason) == (
                ids[: end + 1],
                "stop",
                stop,
            )
        before = len(texts[end - 1]) if end else 0
        inside += first >= before
        across += first < before
    assert inside > 1, "some stop strings lie inside one token"
    assert across > 1, "some stop strings cross a token boundary"


def test_a_stop_id_ends_without_its_text(complete: Complete, whole) -> None:
    ids, texts = whole
    place = next(i for i in range(6, COUNT) if ids.index(ids[i]) == i and not texts[i - 1].endswith("\ufffd"))
    done = complete(greedy(stop_token_ids=[ids[place], 1]))
    assert list(done.token_ids) == ids[: place + 1]
    assert (done.finish_reason, done.stop_reason) == ("stop", ids[place])
    assert done.text == texts[place - 1]
    done = complete(greedy(stop_token_ids=[ids[place]], include_stop_str_in_output=True))
    assert done.text == texts[place]


def test_eos_ends_with_no_reason_of_its_own(complete: Complete, whole) -> None:
    """The bias makes EOS the next token; `ignore_eos` lets it pass, `min_tokens` forbids it for a while."""
    bias = {tiny.EOS: 100.0}
    done = complete(SamplingParams(temperature=0, max_tokens=9, logit_bias=bias))
    assert (list(done.token_ids), done.text) == ([tiny.EOS], "")
    assert (done.finish_reason, done.stop_reason) == ("stop", None)

    done = complete(SamplingParams(temperature=0, max_tokens=9, logit_bias=bias, ignore_eos=True))
    assert (list(done.token_ids), done.finish_reason) == ([tiny.EOS] * 9, "length")

    done = complete(SamplingParams(temperature=0, max_tokens=9, logit_bias=bias, min_tokens=4))
    assert len(done.token_ids) == 5
    assert tiny.EOS not in done.token_ids[:4]
    assert done.token_ids[4] == tiny.EOS


def test_a_stop_string_before_min_tokens_does_not_end(complete: Complete, whole) -> None:
    ids, texts = whole
    stop = texts[3][0]
    least = 1 + next(i for i, t in enumerate(texts) if t.rstrip("\ufffd").count(stop) and i >= 8)
    done = complete(greedy(stop=[stop], min_tokens=least))
    assert len(done.token_ids) >= least
    assert list(done.token_ids) == ids[: len(done.token_ids)]


def test_without_max_tokens_every_output_ends_at_max_model_len(complete: Complete) -> None:
    done = complete(SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    assert len(done.token_ids) == 256 - len(PROMPT)
    assert done.finish_reason == "length"


def test_max_tokens_beyond_max_model_len_ends_there(complete: Complete) -> None:
    done = complete(SamplingParams(temperature=0, max_tokens=10_000, ignore_eos=True))
    assert len(done.token_ids) == 256 - len(PROMPT)


def test_without_detokenize_there_is_no_text(complete: Complete, whole) -> None:
    done = complete(greedy(detokenize=False, max_tokens=5))
    assert (done.text, list(done.token_ids)) == ("", whole[0][:5])


def test_special_tokens_are_shown_when_asked_for(open_llm: Open) -> None:
    llm: LLM = open_llm()
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias={1: 100.0})
    for skip, text in ((True, ""), (False, "<user>" * 3)):
        params.skip_special_tokens = skip
        assert llm.generate([PROMPT], params, use_tqdm=False)[0].outputs[0].text == text
        assert "".join(out.outputs[0].text for out in llm.stream(PROMPT, params)) == text


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_each_output_kind_tells_what_it_promises(open_llm: Open, whole, kind: RequestOutputKind) -> None:
    llm = open_llm()
    llm.add_request(PROMPT, greedy(max_tokens=6, output_kind=kind))
    told = []
    while llm.has_unfinished_requests():
        told += [list(output.outputs[0].token_ids) for output in llm.step().outputs]
    ids = whole[0][:6]
    assert (
        told
        == {
            RequestOutputKind.CUMULATIVE: [ids[:i] for i in range(1, 7)],
            RequestOutputKind.DELTA: [[token] for token in ids],
            RequestOutputKind.FINAL_ONLY: [ids],
        }[kind]
    )


def test_chat_is_the_template_then_generate(open_llm: Open) -> None:
    llm = open_llm()
    talk = [{"role": "user", "content": "the bird"}]
    params = SamplingParams(temperature=0, max_tokens=5)
    tokenizer = llm.get_tokenizer()
    expected = tokenizer.encode("<user>the bird<bot>", add_special_tokens=False)
    one = llm.chat(talk, params, use_tqdm=False)
    two = llm.chat([talk, talk], params, use_tqdm=False)
    assert [list(output.prompt_token_ids) for output in one + two] == [expected] * 3
    assert one[0].prompt == "<user>the bird<bot>"
    (plain,) = llm.generate([expected], params, use_tqdm=False)
    assert {tuple(output.outputs[0].token_ids) for output in one + two} == {tuple(plain.outputs[0].token_ids)}
    assert llm.chat([], params) == []


def test_content_in_parts_is_their_text_line_by_line(open_llm: Open) -> None:
    llm = open_llm()
    parts = [{"type": "text", "text": "the bird"}, {"type": "text", "text": "sings"}]
    (output,) = llm.chat([{"role": "user", "content": parts}], SamplingParams(max_tokens=1), use_tqdm=False)
    assert output.prompt == "<user>the bird\nsings<bot>"
