"""Adapters through the kernels' runner: the logits of merged weights in every kind of step.

Through the interpreter, where everything but the graphs runs; tests/gpu/test_adapters.py runs those.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workbench.kernels.low_rank.stack import cut

from tests.llm import tiny
from tests.lora.adapters import ATTENTION, EVERY, merged, write_adapter
from workbench import LLM, LoRARequest, SamplingParams
from workbench.models import backend
from workbench.runtime import graphs
from workbench.runtime.graphs import StepGraphs
from workbench.runtime.kernel_adapters import ANYTHING, Copying, KernelAdapters
from workbench.runtime.kernel_adapters import ATTENTION as OF_ATTENTION
from workbench.runtime.segment_staging import SegmentStaging

DEVICE = "cpu"
NAMES = ("one", "eight", "deep")
WHERE = {
    "one": (1, EVERY),
    "eight": (8, ATTENTION),
    "deep": (20, ("q_proj", "up_proj", "embed_tokens", "lm_head")),
}


@pytest.fixture(autouse=True)
def _kernels_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_kernels", lambda device: True)


class Home:
    """A base model, and three adapters."""

    def __init__(self, root: Path, family: str) -> None:
        self.base = tiny.write_model(family, root / "base")
        self.folders: dict[str, Path] = {}
        self.oracles: dict[str | None, Any] = {None: tiny.load(self.base).double()}
        for place, name in enumerate(NAMES):
            rank, targets = WHERE[name]
            folder = write_adapter(root / name, tiny.load(self.base), rank, targets, seed=place)
            self.folders[name], self.oracles[name] = folder, merged(folder, self.base)

    def request(self, name: str | None) -> LoRARequest | None:
        return None if name is None else LoRARequest(name, NAMES.index(name) + 1, str(self.folders[name]))


@pytest.fixture(scope="module", params=["llama"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp(request.param), request.param)


def open_llm(folder: Path, **settings: Any) -> LLM:
    plain = {
        "max_model_len": 64, "max_num_seqs": 4, "num_gpu_blocks_override": 48, "skip_tokenizer_init": True,
        "max_loras": 3, "max_lora_rank": 20, "logprobs_mode": "raw_logits",
    }  # fmt: skip
    given = plain | settings
    return LLM(str(folder), device=DEVICE, dtype="float32", block_size=8, enable_lora=True, **given)


def prompts(count: int) -> list[list[int]]:
    dice = random.Random(3)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(5 + 3 * (i % 3))] for i in range(count)]


def assert_are_of(oracle: Any, output: Any) -> None:
    tokens = list(output.outputs[0].token_ids)
    rows = tiny.logits(oracle, [*output.prompt_token_ids, *tokens])[len(output.prompt_token_ids) - 1 : -1]
    for entry, row in zip(output.outputs[0].logprobs, rows, strict=True):
        found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
        torch.testing.assert_close(found, row, rtol=0, atol=1e-4)
    assert tokens == rows.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        ((None, "one", "eight", "deep"), {"async_scheduling": False}),
        (
            (None, "one", "deep"),
            {"max_loras": 1, "async_scheduling": True, "max_num_batched_tokens": 8},
        ),
    ],
    ids=["mixed", "one slot, overlapped, chunked"],
)
def test_logits_are_those_of_merged_weights_row_by_row(home: Home, names: tuple, settings: dict) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=-1)
    given = prompts(len(names))
    with open_llm(home.base, **settings) as llm:
        asked = [home.request(name) for name in names]
        outputs = llm.generate(given, greedy, lora_request=asked, use_tqdm=False)
    for name, output in zip(names, outputs, strict=True):
        assert_are_of(home.oracles[name], output)


def test_prompt_logprobs_are_those_of_merged_weights(home: Home) -> None:
    names = (None, "deep", "one")
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1)
    with open_llm(home.base, max_num_batched_tokens=8, logprobs_mode="raw_logprobs") as llm:
        requests = [home.request(name) for name in names]
        outputs = llm.generate(prompts(3), asked, lora_request=requests, use_tqdm=False)
    for name, prompt, output in zip(names, prompts(3), outputs, strict=True):
        rows = tiny.logits(home.oracles[name], prompt).log_softmax(-1)
        for entry, row in zip(output.prompt_logprobs[1:], rows, strict=False):
            found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
            torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


def test_a_step_runs_the_graphs_of_what_its_adapters_change(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's: the base's own. And a graph of more lines than the batch changes no token."""
    monkeypatch.setattr(graphs, "ladder", lambda most: [4, most])
    asked: list[tuple[int, int]] = []
    pair = StepGraphs.pair

    def watched(self: StepGraphs, form: graphs.Form) -> graphs.Pair:
        asked.append((form.lines, form.changes))
        return pair(self, form)

    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=-1)
    with open_llm(home.base) as llm:
        monkeypatch.setattr(StepGraphs, "pair", watched)
        for names, kind in (((None,) * 3, 0), (("eight", None), OF_ATTENTION), (("deep", "eight"), ANYTHING)):
            asked.clear()
            requests = [home.request(name) for name in names]
            outputs = llm.generate(prompts(len(names)), greedy, lora_request=requests, use_tqdm=False)
            assert asked
            assert set(asked) == {(4, kind)}
            for name, output in zip(names, outputs, strict=True):
                assert_are_of(home.oracles[name], output)


def test_lines_in_another_order_keep_their_adapters(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches are computed by the length of their contexts, and sampled in the plan's order."""
    monkeypatch.setattr("workbench.runtime.kernel_runner.IN_ORDER", 2)
    monkeypatch.setattr("workbench.runtime.kernel_step.IN_ORDER", 2)
    names, greedy = (
        ("deep", "one", None, "eight"),
        SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=-1),
    )
    given = [prompts(1)[0] * times for times in (3, 1, 2, 1)]
    with open_llm(home.base) as llm:
        asked = [home.request(name) for name in names]
        outputs = llm.generate(given, greedy, lora_request=asked, use_tqdm=False)
    for name, output in zip(names, outputs, strict=True):
        assert_are_of(home.oracles[name], output)


def test_a_step_with_the_same_members_is_not_told_again_who_has_which_adapter() -> None:
    staging = SegmentStaging(8, 2, torch.device("cpu"), 2)
    rows, slots = np.arange(3, dtype=np.int32), np.array([1, -1, 0])
    staging.send(rows, 0, 4, slots, slots[::-1].copy())
    tokens, wanted = staging.segments(4)
    assert (tokens.tokens[:2].tolist(), int(tokens.count)) == ([2, 0], 2)
    assert wanted.tokens[:2].tolist() == [0, 2]
    assert tokens.blocks[:2].tolist() == [[0, 0, 1], [1, 1, 2]]
    tokens.count.zero_()
    staging.send(rows, 1, 4, slots, slots)
    assert int(tokens.count) == 0, "nothing was sent"
    staging.send(rows.copy(), 1, 4, slots, slots)
    assert int(tokens.count) == 2


def test_segments_hold_each_token_with_an_adapter_once_and_no_block_has_two() -> None:
    dice = np.random.default_rng(3)
    for size in (1, 3, 16):
        slots = dice.integers(-2, 4, 50)
        found = cut(slots, size)
        assert sorted(found.tokens.tolist()) == (slots >= 0).nonzero()[0].tolist()
        covered = []
        for slot, begin, end in found.blocks.tolist():
            assert 0 < end - begin <= size
            assert (slots[found.tokens[begin:end]] == slot).all()
            covered += range(begin, end)
        assert covered == list(range(len(found.tokens)))


def test_what_later_steps_need_is_copied_behind_the_step(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    apply, later, copy = KernelAdapters.apply, KernelAdapters.load_later, Copying.copy
    monkeypatch.setattr(
        KernelAdapters, "apply", lambda self, plan: (told.append("step"), apply(self, plan))[1]
    )
    monkeypatch.setattr(KernelAdapters, "load_later", lambda self: (told.append("queued"), later(self))[1])
    monkeypatch.setattr(Copying, "copy", lambda self, *given: (told.append("copy"), copy(self, *given))[1])
    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(home.base, async_scheduling=False) as llm:
        told.clear()
        llm.generate(prompts(2), greedy, lora_request=[None, home.request("one")], use_tqdm=False)
    assert told[:4] == ["step", "queued", "copy", "step"]
