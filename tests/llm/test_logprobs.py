"""Logprobs of generated tokens are those of transformers, whatever was asked of them and by whom."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from workbench.kernels.logprobs.reference import logprobs

from tests.llm import tiny
from tests.llm.asking import is_rank, prompts
from tests.llm.conftest import Models, Open
from workbench import SamplingParams
from workbench.runtime.logprobs import Wanted, read, to_columns
from workbench.token_logprobs import Listing, TokenLogprobs

COUNT = 5
MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
DRAWN: dict[str, Any] = {"temperature": 0.7, "seed": 4, "max_tokens": COUNT, "ignore_eos": True}
# In every mode: what a row of transformers' logits becomes at temperature 0.7.
EXPECTED = {
    "raw_logprobs": lambda row: row.double().log_softmax(-1),
    "processed_logprobs": lambda row: (row.double() / 0.7).log_softmax(-1),
    "raw_logits": lambda row: row.double(),
    "processed_logits": lambda row: row.double() / 0.7,
}


def behind(models: Models, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[len(tokens), vocab]; transformers' logits that each token was drawn from."""
    return tiny.logits(models.oracle(), [*prompt, *tokens])[len(prompt) - 1 : -1]


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_vocabulary_is_that_of_transformers(models: Models, open_llm: Open, mode: str) -> None:
    llm = open_llm(logprobs_mode=mode)
    given = prompts(3)
    params = [
        SamplingParams(logprobs=-1, **DRAWN),
        SamplingParams(**DRAWN),
        SamplingParams(logprobs=3, **DRAWN),
    ]
    outputs = llm.generate(given, params, use_tqdm=False)
    child = outputs[0].outputs[0]
    for token, entry, row in zip(
        child.token_ids, child.logprobs, behind(models, given[0], child.token_ids), strict=True
    ):
        assert sorted(entry) == list(range(tiny.VOCAB))
        assert next(iter(entry)) == token
        found = torch.tensor([entry[token_id].logprob for token_id in range(tiny.VOCAB)]).double()
        torch.testing.assert_close(found, EXPECTED[mode](row), rtol=0, atol=1e-4)
        if mode.endswith("logprobs"):
            assert float(found.exp().sum()) == pytest.approx(1, abs=1e-5)
        for value in entry.values():
            assert value.rank == 1 + int((found > value.logprob).sum())
    assert outputs[1].outputs[0].logprobs is None
    assert all(3 <= len(entry) <= 4 for entry in outputs[2].outputs[0].logprobs)


@pytest.mark.parametrize("mode", MODES)
def test_listed_ids_are_told_of_with_their_ranks(models: Models, open_llm: Open, mode: str) -> None:
    llm = open_llm(logprobs_mode=mode)
    given = prompts(4)
    lists = [[7, 300, 12], [5], None, [9, 9, 200]]
    tops = [None, 2, None, 0]
    params = [
        SamplingParams(logprob_token_ids=ids, logprobs=top, **DRAWN)
        for ids, top in zip(lists, tops, strict=True)
    ]
    outputs = llm.generate(given, params, use_tqdm=False)
    for prompt, ids, top, output in zip(given, lists, tops, outputs, strict=True):
        child = output.outputs[0]
        if ids is None:
            assert child.logprobs is None
            continue
        assert child.cumulative_logprob is not None
        rows = behind(models, prompt, child.token_ids)
        for token, entry, row in zip(child.token_ids, child.logprobs, rows, strict=True):
            expected = EXPECTED[mode](row)
            assert {token, *ids} <= set(entry)
            assert len(entry) <= 1 + len(set(ids)) + (top or 0)
            for token_id in {token, *ids}:
                assert entry[token_id].logprob == pytest.approx(float(expected[token_id]), abs=1e-4)
                assert is_rank(entry[token_id].rank, expected, token_id)


def test_masked_tokens_have_no_probability_and_share_the_rank_behind_the_others(open_llm: Open) -> None:
    llm = open_llm(logprobs_mode="processed_logprobs")
    params = SamplingParams(allowed_token_ids=[4, 5, 6], logprobs=-1, logprob_token_ids=[4, 7], **DRAWN)
    (output,) = llm.generate(prompts(1), params, use_tqdm=False)
    for entry in output.outputs[0].logprobs:
        assert {token_id for token_id, value in entry.items() if value.logprob > -math.inf} == {4, 5, 6}
        assert {value.rank for token_id, value in entry.items() if token_id > 6} == {4}


def test_equal_values_have_one_rank_in_every_list() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 5.0, 3.0, 3.0, 0.0]])
    ranks = [6, 1, 3, 1, 3, 3, 7]
    ids = np.arange(len(ranks))
    wanted = Wanted(np.array([0]), 7, np.array([0]), np.array([0]), ids[None])
    for token_id in ids.tolist():
        columns = to_columns(
            read(logits, torch.tensor([token_id]), wanted, logprobs, as_logits=False), wanted
        )
        assert columns.ranks.tolist() == [ranks[token_id]]
        assert columns.listed.ranks.tolist() == [ranks]
        own = (columns.sampled, columns.ranks)
        listing = Listing(ids, columns.listed.logprobs, columns.listed.ranks)
        for lists in (
            TokenLogprobs([token_id], *own, columns.top_ids, columns.top_logprobs),
            TokenLogprobs([token_id], *own, [], [], listing=listing),
            TokenLogprobs([token_id], *own, [], [], whole=columns.whole.logprobs),
        ):
            (entry,) = lists
            assert {other: value.rank for other, value in entry.items()} == dict(enumerate(ranks))


def test_a_request_that_asks_for_less_keeps_no_more(open_llm: Open) -> None:
    """The neighbour's vocabulary is not held by those who did not ask for it, nor by the trace."""
    llm = open_llm()
    params = [SamplingParams(logprobs=-1, **DRAWN), SamplingParams(logprobs=1, **DRAWN)]
    parents = llm._intake.all(prompts(2), params, None, None)
    llm._requests.submit(parents, lambda request: None)
    llm._requests.drive(parents, lambda: all(parent.finished for parent in parents))
    columns = [each for parent in parents for each, _ in parent.requests[0].logprobs]
    assert columns
    assert all(each.whole is None for each in columns)
    assert [len(parent.requests[0].whole_logprobs) for parent in parents] == [COUNT, 0]
    assert len(llm.trace.tokens) == 2 * COUNT
    assert not any(
        event.result.logprobs.whole for event in llm.trace.recording().events if hasattr(event, "result")
    )


@pytest.mark.parametrize("asked", [{"logprobs": 4}, {"logprobs": -1}, {"logprob_token_ids": [3, 8]}])
def test_streamed_logprobs_are_those_of_the_whole_output(open_llm: Open, asked: dict) -> None:
    llm = open_llm()
    params = SamplingParams(**asked, **DRAWN)
    (output,) = llm.generate([prompts(1)[0]], params, use_tqdm=False)
    streamed = [entry for out in llm.stream(prompts(1)[0], params) for entry in out.outputs[0].logprobs]
    assert streamed == list(output.outputs[0].logprobs)


def test_a_raised_bound_and_none_give_more_logprobs(open_llm: Open) -> None:
    for bound in (30, -1):
        llm = open_llm(max_logprobs=bound)
        (output,) = llm.generate([[5, 6]], SamplingParams(logprobs=30, **DRAWN), use_tqdm=False)
        for entry in output.outputs[0].logprobs:
            assert 30 <= len(entry) <= 31
            listed = [value.logprob for value in list(entry.values())[1:]]
            assert all(a >= b for a, b in pairwise(listed))
