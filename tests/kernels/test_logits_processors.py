"""Logits processors on the kernels' runner: the tokens, logprobs and failures of plain torch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llm import tiny
from tests.llm.processors import Bias, Failing, MinP, Recorder, take_recorder
from workbench import LLM, RequestOutput, SamplingParams
from workbench.models import backend
from workbench.runtime.warmup import warm_plans

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model("llama", tmp_path_factory.mktemp("models") / "llama")


def prompts() -> list[list[int]]:
    dice = random.Random(6)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(3 + 4 * i)] for i in range(5)]


def params() -> list[SamplingParams]:
    bias = {"bias": {7: 5.0, 9: 4.0}, "name": "0"}
    common: dict[str, Any] = {"ignore_eos": True, "extra_args": bias}
    return [
        SamplingParams(temperature=0.8, seed=1, logprobs=2, max_tokens=3, **common),
        SamplingParams(temperature=0.9, seed=2, top_k=20, frequency_penalty=0.8, max_tokens=4, **common),
        SamplingParams(temperature=0, repetition_penalty=1.4, logprobs=0, max_tokens=2, **common),
        SamplingParams(temperature=0.7, seed=4, max_tokens=3, ignore_eos=True,
                       extra_args={"min_p": 0.2, "name": "3"}),
        SamplingParams(temperature=0, max_tokens=4, extra_args={"fail": "nan", "name": "4"}),
    ]  # fmt: skip


def run(folder: Path, **settings: Any) -> list[RequestOutput]:
    with LLM(
        str(folder), device=DEVICE, dtype="float32", block_size=8, skip_tokenizer_init=True, max_model_len=96,
        max_num_seqs=3, logits_processors=[Bias, MinP, Failing, Recorder], **settings,
    ) as llm:  # fmt: skip
        return llm.generate(prompts(), params(), use_tqdm=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"logprobs_mode": "processed_logprobs", "max_num_batched_tokens": 16},
        {"async_scheduling": True, "num_gpu_blocks_override": 12},
    ],
    ids=["chunked", "overlapped"],
)
def test_processed_requests_are_those_of_plain_torch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict
) -> None:
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(backend, "has_kernels", lambda device, there=kernels: there)
        outputs = run(folder, **settings)
        found.append((outputs, take_recorder().steps))
    for output, expected in zip(found[0][0], found[1][0], strict=True):
        mine, theirs = output.outputs[0], expected.outputs[0]
        assert list(mine.token_ids) == list(theirs.token_ids)
        assert (mine.finish_reason, mine.stop_reason) == (theirs.finish_reason, theirs.stop_reason)
        for line, other in zip(mine.logprobs or (), theirs.logprobs or (), strict=True):
            assert line.keys() == other.keys()
            for token, value in line.items():
                assert value.logprob == pytest.approx(other[token].logprob, abs=1e-4)
    assert found[0][0][4].outputs[0].finish_reason == "error"
    assert found[0][1] == found[1][1], "processors see the same rows, tokens and likeliest ids"


def test_processors_do_not_see_what_only_warms(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda device: True)
    with LLM(
        str(folder), device=DEVICE, dtype="float32", skip_tokenizer_init=True, max_model_len=96,
        max_num_seqs=2, max_num_batched_tokens=8, logits_processors=[Recorder],
    ) as llm:  # fmt: skip
        recorder = take_recorder()
        llm._engine.runner.warm(warm_plans(2, 8, 96, 16, 1))
        assert recorder.updates == recorder.steps == []
        llm.generate([[5, 6]], SamplingParams(max_tokens=1, extra_args={"name": "0"}), use_tqdm=False)
        assert len(recorder.steps) == 1
