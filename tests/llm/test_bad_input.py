"""Bad input: an error that names the value and the remedy, before any work starts, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.llm import tiny
from tests.llm.conftest import Open, check_idle
from workbench import LLM, LoRARequest, SamplingParams

SHORT = SamplingParams(temperature=0, max_tokens=2)
TALK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def llm(open_llm: Open) -> LLM:
    return open_llm(max_model_len=64, max_num_seqs=8)


def assert_nothing_began(llm: LLM) -> None:
    scheduler = llm._engine.scheduler
    assert (len(scheduler.waiting), scheduler.running.count, scheduler.counts.prefix_queries) == (0, 0, 0)
    assert not llm.has_unfinished_requests()
    check_idle(llm)


# --- prompts ------------------------------------------------------------------------------------------

PROMPTS: dict[str, tuple[object, type[Exception], str]] = {
    "none": (None, TypeError, "a str, a list of token ids or a dict, not NoneType"),
    "a number": (5, TypeError, "not int"),
    "empty text": ("", ValueError, "empty: pass at least one token"),
    "no tokens": ([[]], ValueError, "empty: pass at least one token"),
    "a list of no tokens in a list": (
        {"prompt_token_ids": [[]]},
        TypeError,
        r"flat list of ints, not \[\[\]\]",
    ),
    "nested tokens": ([[1, [2]]], TypeError, "flat list of ints"),
    "a text among tokens": ([[1, "a"]], TypeError, "flat list of ints.*'a'"),
    "a token among texts": (["a", 3], TypeError, "prompt 1 of 2.*not int"),
    "nothing among texts": (["a", None], TypeError, "prompt 1 of 2.*NoneType"),
    "truth values": ([True, False], TypeError, "flat list of ints.*True"),
    "a truth value": ([1, True], TypeError, "flat list of ints.*True"),
    "fractions": ([[1.5]], TypeError, "flat list of ints.*1.5"),
    "bytes": (b"abc", TypeError, "flat list of ints"),
    "a set": ({1, 2}, TypeError, "not set"),
    "an iterator": (iter([1]), TypeError, "not list_iterator"),
    "a matrix": (np.ones((2, 2), int), TypeError, "flat list of ints"),
    "an array of fractions": (np.ones(2), TypeError, "flat list of ints"),
    "a token below 0": ([-1], ValueError, "token id -1 .*0 or more"),
    "a token beyond the vocabulary": ([tiny.VOCAB], ValueError, "token id 320 .* ends at 319"),
    "a token beyond 32 bits": ([2**40], ValueError, f"token id {2**40} "),
    "a token beyond 64 bits": ([5, 10**30], ValueError, f"token id {10**30} "),
    "a token far below 0": ([-(10**30)], ValueError, f"token id -{10**30} "),
    "a dict without a prompt": ({"cache_salt": "a"}, ValueError, "needs 'prompt' or 'prompt_token_ids'"),
    "a dict with a typo": ({"promt": "a"}, ValueError, "no 'promt': it takes prompt, prompt_token_ids"),
    "a dict with another kind of text": ({"prompt": 5}, TypeError, "'prompt' is a str, not int"),
    "tokens as a str": ({"prompt_token_ids": "12"}, TypeError, "flat list of ints, not '12'"),
    "one token": ({"prompt_token_ids": 5}, TypeError, "flat list of ints"),
    "a salt of another kind": (
        {"prompt": "a", "cache_salt": 3},
        ValueError,
        "cache_salt is 3.*non-empty str",
    ),
    "an empty salt": ({"prompt": "a", "cache_salt": ""}, ValueError, "cache_salt is ''"),
    "images": (
        {"prompt": "a", "multi_modal_data": {}},
        ValueError,
        "multi_modal_data: images .* not available",
    ),
    "an encoder prompt": ({"encoder_prompt": "a"}, ValueError, "encoder_prompt: .* not available"),
    "half a surrogate pair": ("a\ud800", ValueError, "cannot encode .*surrogate.*replace"),
    "no room for an answer": (
        list(range(1, 65)),
        ValueError,
        "64 tokens and max_model_len is 64.*raise .*shorten",
    ),
    "too long": (list(range(1, 200)), ValueError, "199 tokens and max_model_len is 64.*the model takes 2048"),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_a_bad_prompt_is_named(llm: LLM, case: str) -> None:
    prompt, error, message = PROMPTS[case]
    with pytest.raises(error, match=message):
        llm.generate(prompt, SHORT, use_tqdm=False)
    if not isinstance(prompt, list) or prompt == [True, False]:
        with pytest.raises(error, match=message.removeprefix("prompt 1 of 2.*")):
            llm.add_request(prompt, SHORT)
        with pytest.raises(error, match=message.removeprefix("prompt 1 of 2.*")):
            llm.stream(prompt, SHORT)  # at once, before anything is read from it
    assert_nothing_began(llm)


@pytest.mark.parametrize("bad", ["", [], [999], None, list(range(3, 99)), {"prompt": "a", "x": 1}, "\udfff"])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_one_bad_prompt_of_a_hundred_is_reported_before_any_work(llm: LLM, bad: object, place: int) -> None:
    given: list[object] = [f"prompt number {i}" for i in range(100)]
    given[place] = bad
    with pytest.raises((ValueError, TypeError), match=f"prompt {place} of 100: "):
        llm.generate(given, SHORT, use_tqdm=False)
    assert_nothing_began(llm)
    assert len(llm.trace.requests) == 0


def test_unusual_prompts_that_are_right_are_taken(llm: LLM) -> None:
    ids = [4, 5, 6]
    forms = [
        ids,
        tuple(ids),
        np.array(ids),
        [np.int64(i) for i in ids],
        {"prompt_token_ids": np.array(ids, np.uint8)},
        {"prompt_token_ids": torch.tensor(ids)},
        {"prompt": None, "prompt_token_ids": ids},
    ]
    for form in forms:
        (output,) = llm.generate(form, SHORT, use_tqdm=False)
        assert output.prompt_token_ids == ids
    mixed = llm.generate(["abc", ids, {"prompt": "abc"}], SHORT, use_tqdm=False)
    assert [output.prompt for output in mixed] == ["abc", None, "abc"]
    assert mixed[0].prompt_token_ids == mixed[2].prompt_token_ids
    assert llm.generate([], SHORT) == []
    assert llm.generate([], []) == []


def test_a_prompt_longer_than_the_whole_cache_names_the_knob(open_llm: Open) -> None:
    llm = open_llm(max_model_len=None, num_gpu_blocks_override=4, max_num_seqs=4)
    assert llm.config.max_model_len == 64
    with pytest.raises(
        ValueError, match=r"80 tokens, the cache holds 64: raise kv_cache_memory_bytes.*shorten"
    ):
        llm.generate([list(range(3, 83))], SHORT, use_tqdm=False)


# --- params and what goes with a prompt ---------------------------------------------------------------

PARAMS: dict[str, tuple[dict, type[Exception], str]] = {
    "temperature below 0": ({"temperature": -1}, ValueError, "temperature is -1: use 0 to 2"),
    "temperature not a number": ({"temperature": float("nan")}, ValueError, "temperature is nan"),
    "top_p 0": ({"top_p": 0}, ValueError, "top_p is 0: use more than 0; 1 turns it off"),
    "n 0": ({"n": 0}, ValueError, "n is 0: use 1 or more"),
    "max_tokens 0": ({"max_tokens": 0}, ValueError, "max_tokens is 0: use 1 or more"),
    "best_of": ({"best_of": 2}, TypeError, "'best_of': use n"),
    "logits_processors": ({"logits_processors": []}, TypeError, r"LLM\(logits_processors"),
    "guided_json": ({"guided_json": {}}, TypeError, "structured_outputs=StructuredOutputsParams"),
    "more logprobs than the engine gives": (
        {"logprobs": 21},
        ValueError,
        "logprobs is 21.*raise max_logprobs",
    ),
    "a stop id beyond": ({"stop_token_ids": [999]}, ValueError, "stop_token_ids holds token id 999.*319"),
    "a bias beyond": ({"logit_bias": {320: 1.0}}, ValueError, "logit_bias holds token id 320.*319"),
    "an allowed id beyond": (
        {"allowed_token_ids": [5, 400]},
        ValueError,
        "allowed_token_ids holds .*400.*319",
    ),
    "nothing left to sample": (
        {"allowed_token_ids": [tiny.EOS, 5], "stop_token_ids": [5], "min_tokens": 3},
        ValueError,
        r"allowed_token_ids \[0, 5\] all end.*min_tokens is 3.*allow another",
    ),
    "more prompt logprobs than the engine gives": (
        {"prompt_logprobs": 21},
        ValueError,
        "prompt_logprobs is 21.*raise max_logprobs",
    ),
    "a listed id beyond": ({"logprob_token_ids": [320]}, ValueError, "logprob_token_ids holds .*320.*319"),
}


@pytest.mark.parametrize("case", PARAMS)
def test_bad_params_are_named(llm: LLM, case: str) -> None:
    options, error, message = PARAMS[case]
    with pytest.raises(error, match=message):
        llm.generate(["a"], SamplingParams(**options), use_tqdm=False)
    assert_nothing_began(llm)


def test_params_are_checked_again_when_they_are_used(llm: LLM) -> None:
    params = SamplingParams()
    params.top_p = 0.0
    with pytest.raises(ValueError, match="top_p is 0"):
        llm.generate(["a"], params, use_tqdm=False)
    params.top_p = 1.0
    with pytest.raises(TypeError, match="best_of.*use n"):
        params.best_of = 3


def test_later_changes_do_not_reach_a_queued_request(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    llm.add_request("abc", params)
    params.max_tokens = 1
    while llm.has_unfinished_requests():
        last = llm.step().outputs[-1]
    assert len(last.outputs[0].token_ids) == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sampling_params": [SHORT]}, ValueError, "sampling_params has 1 entries for 2 prompts"),
        ({"sampling_params": [SHORT] * 3}, ValueError, "sampling_params has 3 entries for 2 prompts"),
        ({"sampling_params": {"n": 2}}, TypeError, r"sampling_params is \{'n': 2\}: use SamplingParams"),
        ({"sampling_params": [SHORT, None]}, TypeError, "prompt 1 of 2: sampling_params is None"),
        ({"priority": [1]}, ValueError, "priority has 1 entries for 2 prompts"),
        ({"priority": "high"}, TypeError, "priority is 'high': use an integer"),
        ({"priority": True}, TypeError, "priority is True"),
        ({"lora_request": LoRARequest("a", 1, "/a")}, ValueError, "open the LLM with enable_lora=True"),
        ({"lora_request": [None]}, ValueError, "lora_request has 1 entries for 2 prompts"),
    ],
)
def test_what_goes_with_the_prompts_has_to_fit_them(
    llm: LLM, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        llm.generate(["a", "b"], use_tqdm=False, **options)
    assert_nothing_began(llm)


@pytest.mark.parametrize("given", [5, b"a", ("a",)])
def test_a_request_id_is_a_str(llm: LLM, given: object) -> None:
    with pytest.raises(TypeError, match="request_id is .*use a str"):
        llm.add_request("a", SHORT, request_id=given)
    assert_nothing_began(llm)


@pytest.mark.parametrize("given", [5, None])
def test_an_abort_wants_ids(llm: LLM, given: object) -> None:
    with pytest.raises(TypeError, match=f"request_id is {given}: use an id"):
        llm.abort(given)


@pytest.mark.parametrize(
    "messages", [None, "hi", 5, ["hi"], [{"content": "x"}], [TALK, "x"], [[TALK]]], ids=repr
)
def test_a_conversation_is_a_list_of_messages(llm: LLM, messages: object) -> None:
    with pytest.raises(TypeError, match="message"):
        llm.chat(messages, SHORT, use_tqdm=False)
    assert_nothing_began(llm)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (5, TypeError, "content of a message is a str .*not 5"),
        (b"hi", TypeError, "content of a message is a str"),
        ([{"type": "image_url", "image_url": {}}], ValueError, "image_url.*only text is available"),
        ([{"type": "text", "text": 5}], ValueError, "only text is available"),
        ("\ud800", ValueError, "cannot encode the prompt.*surrogate"),
    ],
    ids=repr,
)
def test_the_content_of_a_message_is_text(
    llm: LLM, content: object, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        llm.chat([{"role": "user", "content": content}], SHORT, use_tqdm=False)
    assert_nothing_began(llm)


def test_chat_without_a_template_says_what_to_do(llm: LLM) -> None:
    llm.get_tokenizer().chat_template = None
    with pytest.raises(ValueError, match=r"no chat template: pass chat_template=.* or use generate"):
        llm.chat(TALK, SHORT, use_tqdm=False)
    with pytest.raises(ValueError, match="chat template refuses .*no such role"):
        llm.chat(TALK, SHORT, chat_template="{{ raise_exception('no such role') }}", use_tqdm=False)
    (output,) = llm.chat(TALK, SHORT, chat_template="{{ messages[0].content }}", use_tqdm=False)
    assert output.prompt == "hi"


@pytest.mark.parametrize("name", ["embed", "encode", "classify", "score"])
def test_what_comes_later_says_so(llm: LLM, name: str) -> None:
    with pytest.raises(ValueError, match="not available yet"):
        getattr(llm, name)("a")
