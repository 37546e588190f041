"""Logprobs in the tables: those that requests asked for, and those that a recording asks for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.llm import tiny
from tests.llm.asking import prompts
from tests.trace.house import build
from workbench import LLM, SamplingParams
from workbench.trace import Trace

MODES = ("raw_logprobs", "processed_logprobs")
PARAMS = [
    SamplingParams(temperature=0.8, seed=1, max_tokens=9, n=2),
    SamplingParams(temperature=1.0, seed=2, max_tokens=7, top_p=0.9, logprobs=2),
    SamplingParams(temperature=0, max_tokens=5, logprobs=5),
    SamplingParams(temperature=1.2, seed=3, max_tokens=8, allowed_token_ids=[5, 6, 7, 9, 11], logprobs=0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny.write_model("llama", folder)
    tiny.write_tokenizer(folder)
    return folder


def open_llm(folder: Path, mode: str = "raw_logprobs") -> LLM:
    # Little room: requests wait, are preempted and find one another's blocks.
    return LLM(
        str(folder), device="cpu", max_model_len=64, num_gpu_blocks_override=9, block_size=8,
        max_num_batched_tokens=24, max_num_seqs=24, logprobs_mode=mode,
    )  # fmt: skip


def asked_prompts() -> list[list[int]]:
    return [prompt[:20] for prompt in prompts(len(PARAMS))]


def of(tokens: pd.DataFrame, request_id: str) -> pd.DataFrame:
    return tokens[tokens.request_id == request_id]


@pytest.mark.parametrize("mode", MODES)
def test_recording_logprobs_changes_no_token_and_no_decision(folder: Path, mode: str) -> None:
    found: list[tuple[list[list[int]], Trace]] = []
    for count in (0, 3):
        with open_llm(folder, mode) as llm:
            with llm.trace.record(logprobs=count) as t:
                outputs = llm.generate(asked_prompts(), PARAMS, use_tqdm=False)
            assert llm._emit.logprobs == 0
        found.append(([list(c.token_ids) for o in outputs for c in o.outputs], t))
    (tokens, plain), (same, watched) = found
    assert same == tokens
    assert not plain.diff(watched)
    assert plain.tokens.top_ids.isna().any()
    assert watched.tokens.top_ids.notna().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 3])
def test_tables_hold_the_logprobs_of_the_outputs(folder: Path, mode: str, count: int) -> None:
    with open_llm(folder, mode) as llm, llm.trace.record(logprobs=count) as t:
        outputs = llm.generate(asked_prompts(), PARAMS, use_tqdm=False)
    for output, params in zip(outputs, PARAMS, strict=True):
        if params.logprobs is None:
            continue
        mine = of(t.tokens, output.request_id)
        expected = output.outputs[0].logprobs
        assert expected is not None
        width = max(params.logprobs, count)
        for (_, row), entry in zip(mine.iterrows(), expected, strict=True):
            sampled = entry[row.token_id]
            assert (row.logprob, row["rank"]) == (sampled.logprob, sampled.rank)
            tops = dict(zip(json.loads(row.top_ids), json.loads(row.top_logprobs), strict=True))
            assert len(tops) == width
            values = [-math.inf if value is None else value for value in tops.values()]
            assert values == sorted(values, reverse=True)
            for token_id, value in list(tops.items())[: params.logprobs]:
                assert entry[token_id].logprob == (-math.inf if value is None else value)


def test_who_asked_for_nothing_has_nothing(folder: Path) -> None:
    with open_llm(folder) as llm:
        llm.generate(asked_prompts(), PARAMS, use_tqdm=False)
        tokens = llm.trace.tokens
    for name in ("0_0", "1_0"):
        mine = of(tokens, name)
        assert len(mine) == 9
        for column in ("logprob", "rank", "entropy", "top_ids", "top_logprobs"):
            assert mine[column].isna().all(), column
    assert of(tokens, "3").top_ids.unique().tolist() == ["[]"]  # logprobs=0: the sampled token's alone
    assert of(tokens, "3").entropy.notna().all()


def test_entropy_is_that_of_the_models_distribution(folder: Path) -> None:
    prompt = asked_prompts()[2]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    with open_llm(folder) as llm, llm.trace.record(logprobs=1) as t:
        generated = list(llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids)
    with torch.no_grad():
        logits = tiny.load(folder).double()(torch.tensor([prompt + generated])).logits[0]
    p = logits.softmax(-1)[len(prompt) - 1 : -1]
    expected = -(p * p.log()).sum(-1)
    assert t.tokens.entropy.to_numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert expected.std() > 0.01, "the test would pass for a constant"


def test_processed_entropy_is_that_of_what_was_sampled_from(folder: Path) -> None:
    with open_llm(folder, "processed_logprobs") as llm:
        llm.generate(asked_prompts()[3], PARAMS[3], use_tqdm=False)
        assert (llm.trace.tokens.entropy <= math.log(5) + 1e-6).all()  # five tokens were allowed
    with open_llm(folder) as llm:
        llm.generate(asked_prompts()[3], PARAMS[3], use_tqdm=False)
        assert (llm.trace.tokens.entropy > math.log(5) + 1e-6).any()


def test_a_recording_in_mid_run_begins_where_it_begins(folder: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with open_llm(folder) as llm:
        llm.add_request(asked_prompts()[0], params)
        llm.step()
        with llm.trace.record(logprobs=2):
            llm.step()
            with llm.trace.record(logprobs=4):
                llm.step()
            llm.step()
        while llm.has_unfinished_requests():
            llm.step()
        widths = [0 if top is None else len(json.loads(top)) for top in llm.trace.columns.tokens["top_ids"]]
    assert widths == [0, 2, 4, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (21, "logprobs is 21, the engine gives 20 at most: raise max_logprobs"),
        (-2, "logprobs is -2: use -1 or more"),
        (-1, "a trace keeps the likeliest tokens, not the vocabulary: record"),
    ],
)
def test_more_logprobs_than_there_are_is_refused(folder: Path, count: int, says: str) -> None:
    with open_llm(folder) as llm:
        with pytest.raises(ValueError, match=says), llm.trace.record(logprobs=count):
            pass
        assert llm._emit.logprobs == 0
        llm.generate(asked_prompts()[0], PARAMS[0], use_tqdm=False)


def test_a_trace_of_no_engine_cannot_ask_for_logprobs() -> None:
    with pytest.raises(ValueError, match="call it on llm.trace"), Trace().record(logprobs=1):
        pass


def test_what_is_asked_for_ends_with_the_block_that_asked() -> None:
    emitter = build().emitter
    with emitter.wanting_logprobs(2):
        with pytest.raises(KeyError), emitter.wanting_logprobs(5):
            raise KeyError
        with emitter.wanting_logprobs(5):
            assert emitter.logprobs == 5
        with emitter.wanting_logprobs(1):
            assert emitter.logprobs == 2
    assert emitter.logprobs == 0


def test_what_cannot_be_sampled_is_null_and_no_entropy(folder: Path) -> None:
    params = SamplingParams(temperature=1, seed=4, max_tokens=3, allowed_token_ids=[5, 6], logprobs=4)
    with open_llm(folder, "processed_logprobs") as llm:
        llm.generate(asked_prompts()[1], params, use_tqdm=False)
        tokens = llm.trace.tokens
    for top in tokens.top_logprobs:
        assert [value is None for value in json.loads(top)] == [False, False, True, True]
    assert np.isfinite(tokens.entropy).all()
