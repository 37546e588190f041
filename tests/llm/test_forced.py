"""Tokens to which a grammar leaves no alternative are taken at once, and change nothing but the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.llm.asking import compile_grammars, prompts
from tests.llm.conftest import Open
from workbench import LLM, RequestOutputKind, SamplingParams, StructuredOutputsParams
from workbench.sim.replay import replay
from workbench.trace import Trace

# Of these letters the tokenizer knows no longer pieces: each is a token of its own.
PATTERN = "[ab]zqzqzq[ab]{2}qqqqq(zz)?"
TIGHT = {"num_gpu_blocks_override": 10, "block_size": 8, "max_model_len": 80}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 8, "max_num_seqs": 4},
    "a few tokens at once": {"long_prefill_token_threshold": 3},
    "tight": TIGHT,
    "no cache": {"enable_prefix_caching": False},
}


def asked(seed: int, **options: Any) -> SamplingParams:
    structured = StructuredOutputsParams(regex=PATTERN)
    return SamplingParams(**{"seed": seed, "max_tokens": 30, "structured_outputs": structured} | options)


def mixed(**options: Any) -> list[SamplingParams]:
    """Some end before the grammar does, in the middle of what it forces."""
    free = [SamplingParams(seed=9, max_tokens=10), SamplingParams(temperature=0, max_tokens=14)]
    lengths = [asked(3, max_tokens=count, **options) for count in (1, 2, 3, 7, 8)]
    return [asked(1, **options), *free, asked(2, temperature=0, **options), *lengths]


def tokens(llm: LLM, params: list[SamplingParams]) -> list[list[int]]:
    outputs = llm.generate(prompts(len(params)), params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture
def expected(open_llm: Open) -> list[list[int]]:
    """One token a step: whoever asks for logprobs wants every token looked up in its logits."""
    llm = open_llm()
    found = tokens(llm, mixed(logprobs=0))
    assert llm.trace.steps.forced.sum() == 0
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_tokens_are_those_of_one_a_step(open_llm: Open, expected: list[list[int]], way: str) -> None:
    llm = open_llm(**WAYS[way])
    compile_grammars(llm, mixed())
    with llm.trace.record() as trace:
        assert tokens(llm, mixed()) == expected
    assert trace.steps.forced.sum() > 20, "the grammar forced nothing"
    if way == "tight":
        assert trace.requests.preemptions.sum() > 0
    rule = (
        trace.requests.prompt_tokens - trace.requests.cached_tokens + trace.requests.output_tokens - 1
        + trace.requests.recomputed_tokens + trace.requests.overshoot_tokens
    )  # fmt: skip
    assert trace.requests.computed_tokens.tolist() == rule.tolist()


def test_a_run_of_them_takes_one_step(open_llm: Open) -> None:
    llm = open_llm()
    (found,) = tokens(llm, [asked(1)])
    assert len(found) >= 1 + 6 + 2 + 5
    chosen = 1 + 2 + 1  # a or b; a or b, twice; whether zz comes
    begun = 1 + 1 + 1 + 1  # the first of zqzqzq, of qqqqq, the second of zz, and EOS
    assert llm.trace.steps.sampled.sum() <= chosen + begun
    assert llm.trace.steps.sampled.sum() + llm.trace.steps.forced.sum() == len(found)


def test_the_trace_says_which_and_how_narrow_the_mask_was(open_llm: Open, tmp_path: Path) -> None:
    llm = open_llm()
    with llm.trace.record(tmp_path / "kept") as trace:
        tokens(llm, mixed())
    loaded = Trace.load(tmp_path / "kept")
    assert loaded.tokens.drop(columns="text").equals(trace.tokens.drop(columns="text"))
    vocabulary = llm._parts.spec.vocab_size
    constrained = trace.tokens[~trace.tokens.request_id.isin(["1", "2"])]
    assert trace.tokens[trace.tokens.request_id.isin(["1", "2"])].masked.isna().all()
    assert constrained.masked.notna().all()
    allowed = (1 - constrained.masked) * vocabulary
    assert np.allclose(allowed[constrained.forced], 1, atol=1e-2)
    assert (allowed[constrained["index"] == 0].round() == 2).all(), "a or b"
    for _, mine in constrained.groupby("request_id"):
        assert mine["index"].tolist() == list(range(len(mine)))


def test_a_replay_takes_them_too(open_llm: Open) -> None:
    llm = open_llm()
    with llm.trace.record() as trace:
        tokens(llm, mixed())
    assert not trace.diff(replay(trace))


def test_who_has_to_see_every_token_gets_one_a_step(open_llm: Open) -> None:
    llm = open_llm()
    for options in (
        {"stop": ["zqz"]}, {"logprobs": 2}, {"min_tokens": 3}, {"repetition_penalty": 1.2},
        {"bad_words": ["owl"]}, {"logit_bias": {5: 1.0}},
    ):  # fmt: skip
        with llm.trace.record() as trace:
            tokens(llm, [asked(1, **options)])
        assert trace.steps.forced.sum() == 0, options
    with llm.trace.record(logprobs=1) as trace:
        tokens(llm, [asked(1)])
    assert trace.steps.forced.sum() == 0


def test_they_are_streamed_as_they_come(open_llm: Open) -> None:
    llm = open_llm()
    (whole,) = llm.generate("the", asked(1), use_tqdm=False)
    pieces = list(llm.stream("the", asked(1, output_kind=RequestOutputKind.DELTA)))
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.outputs[0].text
    told = [token_id for piece in pieces for token_id in piece.outputs[0].token_ids]
    assert told == list(whole.outputs[0].token_ids)
    assert len(pieces) < len(whole.outputs[0].token_ids)
