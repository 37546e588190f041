"""The seam to drafters in the runner: hidden states, a cache in the engine's blocks, drafts in results."""

from __future__ import annotations

import pytest
import torch

from tests.llm.asking import prompts
from tests.llm.conftest import Models, Open, check_idle
from tests.llm.step_drafters import Recalling
from tests.llm.test_speculation import WAYS, rule
from workbench import LLM, SamplingParams
from workbench.speculate.config import Room
from workbench.speculate.relay import Relay
from workbench.speculate.speculator import Speculator

GREEDY = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)


def recalling(llm: LLM) -> Recalling:
    """The engine's requests are drafted in its runner."""
    c = llm.config
    drafter = Recalling(c.num_blocks, c.block_size, 32, c.max_num_seqs, c.max_model_len + 8)
    scheduler = llm._engine.scheduler
    scheduler._speculation = scheduler._planner._speculation = Speculator(Relay(), Room(3, 256), None)
    llm._engine.runner.drafter = drafter
    return drafter


@pytest.mark.parametrize("way", WAYS)
def test_its_cache_holds_the_models_states_and_its_drafts_change_nothing(
    models: Models, open_llm: Open, way: str
) -> None:
    llm = open_llm(**WAYS[way])
    drafter = recalling(llm)
    given = [prompt + prompt[-6:] * 2 for prompt in prompts(4)]
    with llm.trace.record() as trace:
        for again in (given, given[:2]):
            outputs = llm.generate(again, GREEDY, use_tqdm=False)
            expected = [models.greedy(prompt, 14) for prompt in again]
            assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert trace.steps.draft.sum() > 10
    assert trace.requests.computed_tokens.tolist() == rule(trace)
    if way not in ("tight", "no cache"):
        assert (trace.requests.cached_tokens.tail(2) > 0).all(), "nothing was found in the cache"
    assert len(drafter.read) > 20
    for token_ids, states in list(drafter.read.items())[::7]:  # of prompts found in the cache too
        with torch.inference_mode():
            said = models.oracle()(torch.tensor([token_ids]), output_hidden_states=True)
        assert torch.allclose(states, said.hidden_states[-1][0], atol=1e-4)
    check_idle(llm)


def test_a_drafter_hears_when_a_step_was_lost(open_llm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = open_llm()
    drafter, runner = recalling(llm), llm._engine.runner
    monkeypatch.setattr(runner._model.rotary.__class__, "at", lambda self, positions: 1 // 0)
    (output,) = llm.generate(prompts(1), GREEDY, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    monkeypatch.undo()
    assert drafter.resets == 1
    assert llm.generate(prompts(1), GREEDY, use_tqdm=False)[0].outputs[0].finish_reason == "length"
