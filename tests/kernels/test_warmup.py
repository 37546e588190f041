"""The steps run before the first request: they ask for everything, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llm import tiny
from workbench import LLM, SamplingParams
from workbench.engine.result import StepResult
from workbench.models import backend
from workbench.runtime.kernel_runner import KernelRunner
from workbench.runtime.warmup import warm_plans


def test_warm_steps_tell_of_prompts_and_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda device: True)
    results: list[StepResult] = []
    collect = KernelRunner.collect

    def watched(self: KernelRunner, ticket: object) -> StepResult:
        results.append(collect(self, ticket))
        return results[-1]

    folder, prompt = tiny.write_model("llama", tmp_path), [5, 6, 7, 8]
    settings = {"max_model_len": 64, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    with LLM(str(folder), device="cpu", dtype="float32", skip_tokenizer_init=True, **settings) as llm:
        monkeypatch.setattr(KernelRunner, "collect", watched)
        llm._engine.runner.warm(warm_plans(2, 16, 64, 16, 1))
        monkeypatch.undo()
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        (output,) = llm.generate([prompt], params, use_tqdm=False)
    assert any(result.logprobs for result in results)
    assert [len(scores.sampled) for result in results for scores in result.scores] == [7, 1]
    assert list(output.outputs[0].token_ids) == tiny.greedy(tiny.load(folder), prompt, 3)
