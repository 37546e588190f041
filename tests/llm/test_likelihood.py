"""loglikelihood: transformers' logprobs of continuations, and no context computed twice."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from workbench import LLM

DICE = random.Random(4)
CONTEXT = [DICE.randrange(3, tiny.VOCAB) for _ in range(43)]
CONTINUATIONS = [[DICE.randrange(3, tiny.VOCAB) for _ in range(count)] for count in (1, 5, 20, 1, 2)]


def check(models: Models, found: Any, context: list[int], continuation: list[int]) -> None:
    rows = (
        tiny.logits(models.oracle(), [*context, *continuation]).double().log_softmax(-1)[len(context) - 1 :]
    )
    expected = [float(row[token]) for token, row in zip(continuation, rows, strict=False)]
    greedy = [int(row.argmax()) for row in rows[:-1]]
    assert found.token_ids == continuation
    assert found.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert found.logprob == pytest.approx(sum(expected), abs=1e-3)
    assert found.is_greedy == (greedy == continuation)
    assert [rank == 1 for rank in found.token_ranks] == [
        a == b for a, b in zip(greedy, continuation, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"enable_prefix_caching": False},
        {"num_gpu_blocks_override": 10, "max_model_len": 72, "max_num_seqs": 4, "async_scheduling": True},
        {"logprobs_mode": "processed_logprobs"},
    ],
    ids=["plain", "chunked", "without cache", "little room", "processed"],
)
def test_likelihoods_are_those_of_transformers(models: Models, open_llm: Open, settings: dict) -> None:
    llm = open_llm(block_size=8, **settings)
    greedy = models.greedy(CONTEXT, 4)
    pairs = [(CONTEXT, continuation) for continuation in (*CONTINUATIONS, greedy)]
    pairs += [(CONTEXT[:1], CONTEXT[1:9]), (CONTEXT[:16], CONTEXT[16:40])]
    for _ in range(2):
        for found, (context, continuation) in zip(
            llm.loglikelihood(pairs, use_tqdm=False), pairs, strict=True
        ):
            check(models, found, context, continuation)
    assert llm.loglikelihood(pairs, use_tqdm=False)[len(CONTINUATIONS)].is_greedy


def test_a_context_is_computed_once(open_llm: Open) -> None:
    llm = open_llm(block_size=8)
    pairs = [(CONTEXT, continuation) for continuation in CONTINUATIONS]
    found = llm.loglikelihood(pairs, use_tqdm=False)
    whole_blocks = (len(CONTEXT) - 1) // 8 * 8
    assert sorted(each.num_cached_tokens for each in found) == [0, *[whole_blocks] * (len(pairs) - 1)]
    behind = sum(len(CONTEXT) + len(c) - 1 - whole_blocks for c in CONTINUATIONS)
    assert llm.trace.steps["scheduled"].sum() == whole_blocks + behind


def test_texts_are_read_as_one(models: Models, open_llm: Open) -> None:
    llm = open_llm()
    tokenizer = llm.get_tokenizer()
    for context, continuation in [
        ("the bird", " sang in"),
        ("the bird ", "sang"),
        ("the bi", "rd"),
        ("你", "好 😀"),
    ]:
        (found,) = llm.loglikelihood([(context, continuation)], use_tqdm=False)
        whole = tokenizer.encode(context + continuation)
        count = len(whole) - len(found.token_ids)
        assert tokenizer.encode(context.rstrip())[:count] == whole[:count]
        check(models, found, whole[:count], whole[count:])
    (mixed,) = llm.loglikelihood([("the bird", tokenizer.encode(" sang"))], use_tqdm=False)
    (texts,) = llm.loglikelihood([("the bird", " sang")], use_tqdm=False)
    assert mixed.token_logprobs == pytest.approx(texts.token_logprobs, abs=1e-5)


def test_an_empty_context_is_the_beginning_of_a_text() -> None:
    with LLM(device="cpu", dtype="float32") as llm:
        text, ids = llm.loglikelihood([("", "Once there was"), ([], "Once there was")], use_tqdm=False)
        begin = llm.get_tokenizer().bos_token_id
        (told,) = llm.loglikelihood([([begin], "Once there was")], use_tqdm=False)
    assert text.token_ids == ids.token_ids == told.token_ids
    assert text.logprob == pytest.approx(told.logprob, abs=1e-4)
    assert ids.logprob == pytest.approx(told.logprob, abs=1e-4)


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ("ab", TypeError, "use a list of"),
        ([("a", "b"), "ab"], TypeError, r"pair 1 of 2: 'ab' is no pair: use \(context, continuation\)"),
        ([("a",)], TypeError, "pair 0 of 1: .*no pair"),
        ([("a", 5)], TypeError, "5 is neither a str nor a list of token ids"),
        ([("a", "")], ValueError, "continuation is empty: give at least one token"),
        ([("a", [])], ValueError, "continuation is empty"),
        ([([], [4])], ValueError, "context is empty.*give one token of context"),
        ([([3], [4, 999])], ValueError, "999.*not in the vocabulary|vocabulary ends"),
        ([([3], [999, 4])], ValueError, "pair 0 of 1: token id 999 is not in the vocabulary"),
        ([([3] * 400, [4])], ValueError, "pair 0 of 1: .*shorten"),
    ],
)
def test_bad_pairs_are_named(open_llm: Open, pairs: Any, error: type[Exception], message: str) -> None:
    llm = open_llm()
    with pytest.raises(error, match=message):
        llm.loglikelihood(pairs, use_tqdm=False)
    assert not llm.has_unfinished_requests()


def test_what_it_needs_and_the_engine_lacks_is_named(open_llm: Open) -> None:
    with pytest.raises(ValueError, match="open the LLM with logprobs_mode='raw_logprobs'"):
        open_llm(logprobs_mode="raw_logits").loglikelihood([([3], [4])])
    with pytest.raises(ValueError, match="no tokenizer.*pass token ids"):
        open_llm(skip_tokenizer_init=True).loglikelihood([("a", "b")])
    assert open_llm().loglikelihood([]) == []


def test_a_request_that_fails_is_told(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = open_llm()

    def failing(plan: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(llm._engine.runner, "launch", failing)
    with pytest.raises(RuntimeError, match="ended with 'error'"):
        llm.loglikelihood([([3], [4])], use_tqdm=False)
