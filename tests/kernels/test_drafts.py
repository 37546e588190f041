"""The kernels' runner verifies drafts: tokens, logprobs and hidden states are those of a token a step.

Through the interpreter on a CPU, where everything but the graphs runs; compiled, with graphs, on a GPU.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.engines import open_llm, prompts
from tests.llm import tiny
from tests.llm.drafters import TestDrafter
from tests.llm.step_drafters import Recalling
from workbench import LLM, SamplingParams, StructuredOutputsParams, build
from workbench.config import EngineConfig
from workbench.engine.running import Running
from workbench.models import backend
from workbench.runtime import graphs, kernel_runner, kernel_step
from workbench.trace import Trace

pytestmark = pytest.mark.usefixtures("kernels_everywhere")


def now_and_then(llm: LLM) -> Any:
    """Its requests draft in some steps, and in others those overlap; its speculator."""
    speculator: Any = llm._engine.scheduler._speculation
    waits, asks, turns = speculator.waits, speculator.asks, count()
    drafting = [False]

    def sometimes(running: Running) -> bool:
        drafting[0] = next(turns) % 9 < 5
        return drafting[0] and waits(running)

    speculator.waits = sometimes
    speculator.asks = lambda running: asks(running) if drafting[0] else None
    return speculator


def overlapping(trace: Trace) -> bool:
    """Whether a step was launched before the one ahead of it was collected."""
    return bool((trace.steps.gap_s == 0).any())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("adversarial", {}), ("accurate", {"async_scheduling": True, "max_num_batched_tokens": 7})],
    ids=["some are right", "overlapped, chunked, all are right"],
)
def test_drafts_change_no_token_and_no_logprob(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict
) -> None:
    """By graphs that hold lines of any counts, and beside chunks."""
    monkeypatch.setattr(graphs, "ladder", lambda most: [n for n in (3, 8) if n < most] + [most])
    common = {"max_tokens": 4, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0, **common),
        SamplingParams(temperature=1.0, seed=3, logprobs=2, **common),
        SamplingParams(temperature=0.9, seed=5, **common),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(backend, "has_kernels", lambda device: False)
        with open_llm(folders["llama"]) as llm:
            expected = llm.generate(prompts(3), params, use_tqdm=False)
    whole = [[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in expected]
    config = {"method": "ngram", "num_speculative_tokens": 2, "adaptive": False}
    with open_llm(folders["llama"], speculative_config=config, **settings) as llm:
        llm._engine.scheduler._speculation._drafter = TestDrafter(kind, whole)
        with llm.trace.record() as trace:
            found = llm.generate(prompts(3), params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
    for before, after in zip(expected[1].outputs[0].logprobs, found[1].outputs[0].logprobs, strict=True):
        assert list(before) == list(after)
        assert all(abs(before[i].logprob - after[i].logprob) < 1e-4 for i in before)
    assert (trace.step_requests.groupby("request_id").draft.sum() > 0).all()
    assert trace.steps.accepted.sum() > 0


@pytest.mark.parametrize("kind", ["accurate", "adversarial"])
def test_behind_drafts_logits_are_adjusted_as_if_they_had_been_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Penalties, words and stops held back, biases and grammars, in rows that change hands.

    Tokens and processed logprobs are those of plain torch, a token a step.
    """
    folder = tiny.write_tokenizer(tiny.write_model("llama", tmp_path / "model"))
    monkeypatch.setattr(graphs, "ladder", lambda most: [most])
    common: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True, "logprobs": 2}
    few = [*range(10, 16)]  # tokens, so that some come again and again
    grammar = StructuredOutputsParams(regex="(the cat|a bird)( sang| sat){4}")
    settings = {"max_num_seqs": 3, "skip_tokenizer_init": False, "logprobs_mode": "processed_logprobs"}
    with monkeypatch.context() as patch:
        patch.setattr(backend, "has_kernels", lambda device: False)
        with open_llm(folder, **settings) as llm:
            word = llm.get_tokenizer().encode(" sang bird")
            asked: list[dict[str, Any]] = [
                {"temperature": 0.9, "repetition_penalty": 1.3},
                {
                    "temperature": 0.9,
                    "frequency_penalty": 0.8,
                    "presence_penalty": 0.4,
                    "allowed_token_ids": few,
                },
                {"temperature": 1.4, "bad_words": ["sang bird"], "allowed_token_ids": word},
                {"temperature": 1.5, "min_tokens": 4, "stop_token_ids": [*range(3, 200)], "max_tokens": 7},
                {"temperature": 0, "logit_bias": {7: 2.0, 9: 1.5}, "repetition_penalty": 1.2},
                {
                    "temperature": 0.8,
                    "structured_outputs": grammar,
                    "ignore_eos": False,
                    "presence_penalty": 1,
                },
            ]
            params = [SamplingParams(seed=place, **common | own) for place, own in enumerate(asked)]
            expected = llm.generate(prompts(6), params, use_tqdm=False)
    whole = [[*o.prompt_token_ids, *o.outputs[0].token_ids] for o in expected]
    config = {"method": "ngram", "num_speculative_tokens": 3, "adaptive": False}
    with open_llm(folder, speculative_config=config, async_scheduling=True, **settings) as llm:
        now_and_then(llm)._drafter = TestDrafter(kind, whole)
        with llm.trace.record() as trace:
            found = llm.generate(prompts(6), params, use_tqdm=False)
    assert overlapping(trace) or kind == "accurate", "where all are right it is over too soon"
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
    for before, after in zip(expected, found, strict=True):
        lines = zip(before.outputs[0].logprobs or (), after.outputs[0].logprobs or (), strict=True)
        for line, other in lines:
            assert list(line) == list(other)
            for token in line:
                assert other[token].logprob == pytest.approx(line[token].logprob, abs=1e-4)
    drafts = trace.step_requests.groupby("request_id")[["draft", "accepted"]].sum()
    assert (drafts.draft > 0).all()
    assert (drafts.accepted > 0).all() if kind == "accurate" else drafts.accepted.sum() > 0


def test_whose_row_is_another_requests_now_is_counted_no_more(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with penalties ends in the step that verifies its drafts; beside its heir somebody has a bias."""
    monkeypatch.setattr(graphs, "ladder", lambda most: [most])
    common: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
    params = [
        SamplingParams(max_tokens=4, presence_penalty=0.5, **common),
        SamplingParams(max_tokens=9, logit_bias={7: 2.0}, **common),
        SamplingParams(max_tokens=4, **common),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(backend, "has_kernels", lambda device: False)
        with open_llm(folders["llama"], max_num_seqs=2) as llm:
            expected = [
                list(o.outputs[0].token_ids) for o in llm.generate(prompts(3), params, use_tqdm=False)
            ]
    whole = [[*prompt, *tokens] for prompt, tokens in zip(prompts(3), expected, strict=True)]
    config = {"method": "ngram", "num_speculative_tokens": 2, "adaptive": False}
    with open_llm(folders["llama"], max_num_seqs=2, speculative_config=config) as llm:
        llm._engine.scheduler._speculation._drafter = TestDrafter("accurate", whole)
        with llm.trace.record() as trace:
            found = llm.generate(prompts(3), params, use_tqdm=False)
    assert [list(o.outputs[0].token_ids) for o in found] == expected
    last = trace.step_requests[trace.step_requests.request_id == trace.requests.request_id[0]].iloc[-1]
    assert last.draft > 0, "it ended with drafts"


def test_a_model_that_drafts_behind_graphs_is_right(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner that computes by kernels asks the same drafter, with what has come to the host."""
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    own = {"method": "draft_model", "model": str(folders["llama"])}
    config = own | {"num_speculative_tokens": 2, "adaptive": False}
    monkeypatch.setattr(graphs, "ladder", lambda most: [most])
    with monkeypatch.context() as patch:
        patch.setattr(backend, "has_kernels", lambda device: False)
        with open_llm(folders["llama"]) as llm:
            expected = llm.generate(prompts(2), params, use_tqdm=False)
    settings = {"max_num_seqs": 2, "async_scheduling": True}
    with open_llm(folders["llama"], speculative_config=config, **settings) as llm:
        found = llm.generate(prompts(2), params, use_tqdm=False)
        counts = llm._engine.scheduler.counts
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]
    assert counts.accepted_tokens == counts.draft_tokens > 3


def test_a_drafter_sees_the_hidden_states_of_every_token(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of chunks, decodes and drafts, steps ahead or not, in the plan's order; its cache is in the blocks."""
    drafters: list[Recalling] = []

    class Draft:
        def block_bytes(self, block_size: int) -> int:
            return 0

        def drafter(self, c: EngineConfig) -> Recalling:
            drafters.append(Recalling(c.num_blocks, c.block_size, 32, c.max_num_seqs, c.max_model_len + 8))
            return drafters[-1]

    monkeypatch.setattr(build, "load_draft", lambda *args: Draft())
    monkeypatch.setattr(graphs, "ladder", lambda most: [most])
    own = {"method": "draft_model", "model": str(folders["llama"])}
    config = own | {"num_speculative_tokens": 2, "adaptive": False}
    given = [prompt + prompt[-6:] * 2 for prompt in reversed(prompts(3))]  # the longest first
    for module in (kernel_runner, kernel_step):
        monkeypatch.setattr(module, "IN_ORDER", 1)  # lines of decodes that are not sorted by length
    oracle = tiny.load(folders["llama"])
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    settings = {"max_num_batched_tokens": 24, "async_scheduling": True, "speculative_config": config}
    with open_llm(folders["llama"], **settings) as llm, llm.trace.record() as trace:
        now_and_then(llm)
        outputs = llm.generate(given, params, use_tqdm=False)
        counts = llm._engine.scheduler.counts
    assert overlapping(trace)
    for prompt, output in zip(given, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == tiny.greedy(oracle, prompt, 12)
    assert counts.draft_tokens > 3
    (drafter,) = drafters
    assert len(drafter.read) > 6
    for token_ids, states in drafter.read.items():
        with torch.inference_mode():
            said = oracle(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(states.float().cpu(), said, rtol=0, atol=1e-4)
