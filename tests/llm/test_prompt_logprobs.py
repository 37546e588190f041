"""Prompt logprobs are those of transformers and of the cold cache, whatever the batch and the chunks."""

from __future__ import annotations

import itertools
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.llm import tiny
from tests.llm.asking import is_rank
from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams
from workbench.runtime import scoring
from workbench.sim.replay import replay
from workbench.trace import Trace

FLOAT = 4  # bytes
SHARED = [random.Random(2).randrange(3, tiny.VOCAB) for _ in range(40)]
Entries = list[dict[int, float] | None]


def prompts() -> list[list[int]]:
    """On, before and behind block boundaries; several share a prefix, and two are the same."""
    dice = random.Random(9)
    lengths = (1, 2, 8, 9, 31, 7)
    own = [[dice.randrange(3, tiny.VOCAB) for _ in range(length)] for length in lengths]
    return [own[0], own[1], SHARED + own[2], SHARED + own[3], SHARED + own[3], own[4], SHARED[:32], own[5]]


def params(count: int, **more: Any) -> list[SamplingParams]:
    wants = itertools.cycle([3, 0, None, 5, -1])
    return [
        SamplingParams(
            **{"temperature": 0, "max_tokens": 3, "ignore_eos": True, "prompt_logprobs": want} | more
        )
        for want, _ in zip(wants, range(count), strict=False)
    ]


def check(models: Models, output: Any, want: int | None, family: str = "llama") -> None:
    """Complete, and transformers' own."""
    if want is None:
        assert output.prompt_logprobs is None
        return
    prompt = list(output.prompt_token_ids)
    assert len(output.prompt_logprobs) == len(prompt)
    assert output.prompt_logprobs[0] is None
    rows = tiny.logits(models.oracle(family), prompt).double().log_softmax(-1)
    for token, entry, row in zip(prompt[1:], output.prompt_logprobs[1:], rows, strict=False):
        assert next(iter(entry)) == token
        k = tiny.VOCAB if want == -1 else want
        best = row.topk(k)
        assert len(entry) == k + (token not in best.indices.tolist())
        for token_id, value in entry.items():
            assert value.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
            assert is_rank(value.rank, row, token_id)
        if want == -1:
            assert sum(np.exp(value.logprob) for value in entry.values()) == pytest.approx(1, abs=1e-5)


SETTINGS: dict[str, dict[str, Any]] = {
    "as they come": {},
    "chunked": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "a token at a time": {"long_prefill_token_threshold": 1, "max_num_seqs": 8},
    "overlapped": {"async_scheduling": True, "max_num_batched_tokens": 24, "max_num_seqs": 8},
    "without cache": {"enable_prefix_caching": False},
    "preempted": {"num_gpu_blocks_override": 9, "max_model_len": 64, "max_num_seqs": 8},
    "preempted, overlapped": {
        "num_gpu_blocks_override": 9, "max_model_len": 64, "max_num_seqs": 8, "async_scheduling": True,
        "max_num_batched_tokens": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_prompt_logprobs_are_those_of_transformers(models: Models, open_llm: Open, case: str) -> None:
    llm = open_llm(block_size=8, **SETTINGS[case])
    given = prompts()
    asked = params(len(given), max_tokens=12) if case.startswith("preempted") else params(len(given))
    preemptions = 0
    for order in (range(len(given)), reversed(range(len(given)))):  # and the second time with a warm cache
        for place, output in zip(
            order_ := list(order),
            llm.generate([given[i] for i in order_], [asked[i] for i in order_], use_tqdm=False),
            strict=True,
        ):
            check(models, output, asked[place].prompt_logprobs)
            preemptions += output.metrics.num_preemptions
    assert (preemptions > 0) == case.startswith("preempted")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_tells_of_its_prompts(models: Models, open_llm: Open, family: str) -> None:
    llm = open_llm(family, block_size=8, max_num_batched_tokens=24, max_num_seqs=8)
    for _ in range(2):
        asked = params(len(prompts()))
        for output, own in zip(llm.generate(prompts(), asked, use_tqdm=False), asked, strict=True):
            check(models, output, own.prompt_logprobs, family)


def test_the_tokens_generated_are_the_same_with_and_without(open_llm: Open) -> None:
    llm = open_llm()
    asked, plain = params(8), params(8, prompt_logprobs=None)
    first, second = (llm.generate(prompts(), own, use_tqdm=False) for own in (asked, plain))
    assert [o.outputs[0].token_ids for o in first] == [o.outputs[0].token_ids for o in second]


def test_all_outputs_of_a_prompt_share_one_set(models: Models, open_llm: Open) -> None:
    llm = open_llm(block_size=8)
    own = SamplingParams(n=3, prompt_logprobs=2, max_tokens=4, seed=1)
    for _ in range(2):
        (output,) = llm.generate([SHARED], own, use_tqdm=False)
        check(models, output, 2)
    told = [request.scores for request in llm._intake.one(SHARED, own).requests]
    assert told == [[], [], []]
    assert [request.scoring for request in llm._intake.one(SHARED, own).requests] == [True, False, False]


def test_others_find_the_blocks_of_who_was_told(open_llm: Open) -> None:
    llm = open_llm(block_size=8)
    llm.generate([SHARED], SamplingParams(prompt_logprobs=1, max_tokens=1), use_tqdm=False)
    (output,) = llm.generate([SHARED], SamplingParams(max_tokens=1), use_tqdm=False)
    assert output.num_cached_tokens == 32


@pytest.mark.parametrize("mode", ["raw_logits", "processed_logits", "processed_logprobs"])
def test_modes_with_logits_give_logits_of_the_prompt(models: Models, open_llm: Open, mode: str) -> None:
    llm = open_llm(logprobs_mode=mode)
    own = SamplingParams(prompt_logprobs=-1, max_tokens=1, temperature=0.5, allowed_token_ids=[4])
    (output,) = llm.generate([SHARED], own, use_tqdm=False)
    rows = tiny.logits(models.oracle(), SHARED)
    expected = rows if mode.endswith("logits") else rows.log_softmax(-1)
    found = torch.tensor(
        [[entry[token].logprob for token in range(tiny.VOCAB)] for entry in output.prompt_logprobs[1:]]
    )
    torch.testing.assert_close(found, expected[:-1], rtol=0, atol=1e-4)


def test_slices_change_nothing_and_bound_what_is_there_at_once(
    models: Models, open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 5
    monkeypatch.setattr(scoring, "SLICE_BYTES", most * FLOAT * tiny.VOCAB + 1)
    llm = open_llm()
    sizes: list[int] = []
    model = llm._engine.runner._model
    head = model.lm_head

    class Watched:
        def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
            sizes.append(len(hidden))
            return head(hidden)

    object.__setattr__(model, "lm_head", Watched())
    asked = params(8)
    for output, own in zip(llm.generate(prompts(), asked, use_tqdm=False), asked, strict=True):
        check(models, output, own.prompt_logprobs)
    assert max(sizes) <= 8, "a step samples for eight requests and scores five tokens at once"
    assert sizes.count(most) > 20


def test_prompt_logprobs_are_told_once_when_streamed_and_always_by_hand(
    models: Models, open_llm: Open
) -> None:
    llm = open_llm(max_num_batched_tokens=16, max_num_seqs=8)
    own = SamplingParams(prompt_logprobs=1, max_tokens=4, ignore_eos=True)
    streamed = [output.prompt_logprobs for output in llm.stream(SHARED, own)]
    assert len(streamed) == 4
    assert len(streamed[0]) == len(SHARED)
    assert streamed[1:] == [None] * 3
    llm.add_request(SHARED, own)
    while llm.has_unfinished_requests():
        for output in llm.step().outputs:
            check(models, output, 1 if output.outputs[0].token_ids else None)


def test_a_step_that_fails_leaves_the_others_complete(
    models: Models, open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm(max_num_batched_tokens=16, max_num_seqs=8, async_scheduling=True)
    runner = llm._engine.runner
    launch, calls = runner.launch, itertools.count()

    def failing(plan: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("injected")
        return launch(plan)

    monkeypatch.setattr(runner, "launch", failing)
    asked = params(8)
    outputs = llm.generate(prompts(), asked, use_tqdm=False)
    failed = [output for output in outputs if output.outputs[0].finish_reason == "error"]
    assert 0 < len(failed) < len(outputs)
    for output, own in zip(outputs, asked, strict=True):
        if output.outputs[0].finish_reason != "error":
            check(models, output, own.prompt_logprobs)


def test_they_can_be_pickled_and_sliced(open_llm: Open) -> None:
    llm: LLM = open_llm()
    (output,) = llm.generate([SHARED], SamplingParams(prompt_logprobs=1, max_tokens=1), use_tqdm=False)
    assert pickle.loads(pickle.dumps(output)) == output
    assert output.prompt_logprobs[-2:] == list(output.prompt_logprobs)[-2:]
    assert output.prompt_logprobs[:2][0] is None
    with pytest.raises(IndexError):
        output.prompt_logprobs[len(SHARED)]


def test_without_a_tokenizer_there_are_logprobs_and_no_texts(models: Models, open_llm: Open) -> None:
    llm = open_llm(skip_tokenizer_init=True)
    (output,) = llm.generate([SHARED], SamplingParams(prompt_logprobs=1, max_tokens=1), use_tqdm=False)
    check(models, output, 1)
    assert {value.decoded_token for entry in output.prompt_logprobs[1:] for value in entry.values()} == {None}


def test_a_warm_cache_spares_all_but_the_last_block_of_what_is_known(models: Models, open_llm: Open) -> None:
    """Known are logprobs by the block; the one behind them is predicted from within the last known block."""
    llm = open_llm(block_size=8)
    own = SamplingParams(prompt_logprobs=2, max_tokens=1, temperature=0)
    for count, cached in [(43, 0), (43, 32), (45, 32), (40, 32), (16, 8), (17, 8), (8, 0), (3, 0)]:
        prompt = [*SHARED, 9, 8, 7, 6, 5][:count]
        before = llm.trace.steps["scheduled"].sum()
        (output,) = llm.generate([prompt], own, use_tqdm=False)
        check(models, output, 2)
        assert output.num_cached_tokens == cached
        assert llm.trace.steps["scheduled"].sum() - before == count - cached
    assert llm.trace.requests["cached_tokens"].tolist() == [0, 32, 32, 32, 8, 8, 0, 0]
    # 40 of 43 tokens are cached; what was told of the last block is known, but not what follows it.
    assert llm.trace.requests["forgone_tokens"].tolist() == [0, 8, 8, 0, 0, 8, 0, 0]


def test_what_nobody_was_told_is_computed_again_and_counted(models: Models, open_llm: Open) -> None:
    llm = open_llm(block_size=8)
    for want, cached, forgone in [(None, 0, 0), (1, 0, 32), (0, 24, 8), (1, 24, 8), (3, 0, 32), (-1, 0, 32)]:
        own = SamplingParams(prompt_logprobs=want, max_tokens=1)
        (output,) = llm.generate([SHARED[:39]], own, use_tqdm=False)
        check(models, output, want)
        assert output.num_cached_tokens == cached
        assert llm.trace.requests["forgone_tokens"].iloc[-1] == forgone


def test_a_forgotten_cache_and_another_salt_know_nothing(models: Models, open_llm: Open) -> None:
    llm = open_llm(block_size=8)
    own = SamplingParams(prompt_logprobs=1, max_tokens=1)
    llm.generate([SHARED], own, use_tqdm=False)
    (salted,) = llm.generate([{"prompt_token_ids": SHARED, "cache_salt": "a"}], own, use_tqdm=False)
    assert salted.num_cached_tokens == 0
    assert llm.reset_prefix_cache()
    (output,) = llm.generate([SHARED], own, use_tqdm=False)
    assert output.num_cached_tokens == 0
    check(models, output, 1)


def test_no_more_blocks_are_known_than_the_cache_has(models: Models, open_llm: Open) -> None:
    llm = open_llm(block_size=8, num_gpu_blocks_override=8, max_model_len=64)
    dice = random.Random(1)
    own = SamplingParams(prompt_logprobs=1, max_tokens=1)
    for _ in range(6):
        prompt = [dice.randrange(3, tiny.VOCAB) for _ in range(35)]
        for _ in range(2):
            (output,) = llm.generate([prompt], own, use_tqdm=False)
            check(models, output, 1)
        assert output.num_cached_tokens == 24
        assert 0 < len(llm._engine.scheduler._books.known_scores) <= 8


@pytest.mark.parametrize(("vocab", "size"), [(151_936, 2), (151_936, 4), (1000, 4), (10**9, 2)])
def test_a_slice_is_whole_tiles_or_less_than_one_and_within_its_bytes(vocab: int, size: int) -> None:
    rows = scoring.slice_rows(vocab * size)
    assert rows >= 1
    assert rows == 1 or rows * vocab * size <= scoring.SLICE_BYTES
    assert rows < scoring.TILE or rows % scoring.TILE == 0


SCORE_A_LONG_PROMPT = r"""
import re, numpy, torch
from pathlib import Path
from workbench.kernels.logprobs.reference import logprobs
from workbench.runtime.scoring import Scored, score

torch.set_num_threads(1)
vocab, tokens, width = 151_936, 2_200, 4
head, hidden, chosen = torch.randn(vocab, width), torch.randn(tokens, width), torch.arange(tokens)
scored = Scored(chosen.numpy(), chosen.numpy(), numpy.array([tokens]), numpy.array([WANTS]))
def peak():  # KiB, of this program alone: what getrusage says counts the process that started it, too
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
with torch.inference_mode():
    found = score(hidden, scored, chosen, lambda h, begin: h @ head.T, logprobs, vocab, as_logits=False)
assert len(found.sampled) == tokens
print(peak() - before)
"""


def test_a_prompt_of_more_logits_than_a_gibibyte_takes_less() -> None:
    """The peak of a fresh process, over what it had before."""
    code = SCORE_A_LONG_PROMPT.replace("WANTS", "2")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**27 < 1024 * int(done.stdout) < 2**30


def test_a_replay_decides_as_the_run_did(open_llm: Open, tmp_path: Path) -> None:
    """Whose logprobs were known is a matter of who was told before, which a replay sees too."""
    llm = open_llm(
        block_size=8, max_num_batched_tokens=24, max_num_seqs=4, num_gpu_blocks_override=24, max_model_len=128
    )
    with llm.trace.record(tmp_path / "run") as t:
        for _ in range(2):
            llm.generate(prompts(), params(8), use_tqdm=False)
    again = replay(Trace.load(tmp_path / "run"))
    assert not t.diff(again)
    assert again.requests["cached_tokens"].tolist() == t.requests["cached_tokens"].tolist()
    assert t.requests["cached_tokens"].sum() > 0
