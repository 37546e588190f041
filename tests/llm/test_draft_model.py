"""A model drafts in the runner, out of a cache of its own in the blocks of the other's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.llm.asking import prompts
from tests.llm.conftest import Models, Open, check_idle
from tests.llm.test_speculation import WAYS, rule
from workbench import LLM, RequestOutput, SamplingParams
from workbench.runtime import draft_model
from workbench.speculate.config import Room
from workbench.speculate.pace import Pace
from workbench.speculate.relay import Relay
from workbench.speculate.speculator import Speculator

COUNT = 16
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


def by(folder: Path, **options: Any) -> dict[str, Any]:
    config = {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 3, "adaptive": False}
    return config | options


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


class Fitful(Pace):
    """Now some requests draft, now others, now nobody."""

    def __init__(self) -> None:
        super().__init__(64, 3)
        self.turn = 0

    def wanted(self, rows: np.ndarray, gone: int | None = None) -> np.ndarray:
        self.turn += 1
        wanted = (self.turn + rows) % 4
        return wanted if self.turn % 3 else np.zeros_like(wanted)

    def by_chance(self, rows: np.ndarray) -> np.ndarray:
        return (self.turn + 1 + rows) % 4


@pytest.mark.parametrize("fitful", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_drafts_for_itself_is_always_right(
    models: Models, open_llm: Open, monkeypatch: pytest.MonkeyPatch, way: str, fitful: bool
) -> None:
    """Were a key of its cache another token's, it would say something else."""
    llm = open_llm(**WAYS[way], speculative_config=by(models.folder()))
    if fitful:
        monkeypatch.setattr(draft_model, "BEHIND", 3)
        speculator = Speculator(Relay(), Room(3, 256), Fitful())
        llm._engine.scheduler._speculation = llm._engine.scheduler._planner._speculation = speculator
    given = prompts(5)
    with llm.trace.record() as trace:
        for again in (given, given[:2]):  # found in the cache the second time, where there is one
            found = tokens(llm.generate(again, GREEDY, use_tqdm=False))
            assert found == [models.greedy(prompt, COUNT) for prompt in again]
    requests, steps = trace.requests, trace.steps
    # One that is near its end, or has no blocks, may have drafted more than is verified; none was wrong.
    assert steps.draft.sum() == steps.accepted.sum() > (5 if fitful else 20)
    assert requests.computed_tokens.tolist() == rule(trace)
    if way == "tight":
        assert requests.preemptions.sum() > 0
    check_idle(llm)


class OnAndOff(Pace):
    """Everybody drafts for some steps, and rests for some."""

    def __init__(self, steps: int) -> None:
        super().__init__(64, 3)
        self.steps, self.turn = steps, 0

    def wanted(self, rows: np.ndarray, gone: int | None = None) -> np.ndarray:
        self.holds = 1
        self.turn += 1
        return np.full(len(rows), 0 if self.turn % (2 * self.steps) < self.steps else 3)


@pytest.mark.parametrize("steps", [2, 5, 9])
def test_in_blocks_that_others_held_it_is_right_after_a_rest(
    models: Models, open_llm: Open, steps: int
) -> None:
    """What it computed for somebody else is not there any more, of all tokens written while it rested."""
    settings = {"num_gpu_blocks_override": 13, "block_size": 8, "max_model_len": 96, "max_num_seqs": 2}
    llm = open_llm(**settings, enable_prefix_caching=False, speculative_config=by(models.folder()))
    speculator = Speculator(Relay(), Room(3, 256), OnAndOff(steps))
    llm._engine.scheduler._speculation = llm._engine.scheduler._planner._speculation = speculator
    long = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    for prompt in prompts(6):
        assert tokens(llm.generate([prompt], long, use_tqdm=False)) == [models.greedy(prompt, 32)]
    counts = llm._engine.scheduler.counts
    assert counts.draft_tokens == counts.accepted_tokens > 50


def test_a_draft_model_with_windows_drafts_for_itself(models: Models, open_llm: Open) -> None:
    folder = models.folder("qwen2")
    llm = open_llm("qwen2", speculative_config=by(folder), block_size=4)
    given = prompts(3)
    assert tokens(llm.generate(given, GREEDY, use_tqdm=False)) == [
        models.greedy(prompt, COUNT, "qwen2") for prompt in given
    ]
    counts = llm._engine.scheduler.counts
    assert counts.draft_tokens == counts.accepted_tokens > 20


def test_another_model_that_drafts_changes_nothing(models: Models, open_llm: Open) -> None:
    llm = open_llm(speculative_config=by(models.folder("qwen3")))
    given = prompts(3)
    assert tokens(llm.generate(given, GREEDY, use_tqdm=False)) == [models.greedy(p, COUNT) for p in given]
    counts = llm._engine.scheduler.counts
    assert counts.accepted_tokens < counts.draft_tokens > 50


def test_with_adaptive_on_a_draft_model_changes_nothing(models: Models, open_llm: Open) -> None:
    llm = open_llm(speculative_config=by(models.folder(), adaptive=True))
    for given in (prompts(3), prompts(1)):  # nobody runs in between
        found = tokens(llm.generate(given, GREEDY, use_tqdm=False))
        assert found == [models.greedy(prompt, COUNT) for prompt in given]


def test_the_cache_of_a_draft_model_is_counted(models: Models, open_llm: Open) -> None:
    size = {"kv_cache_memory_bytes": 1 << 20}
    alone = open_llm(**size)
    drafted = open_llm(**size, speculative_config=by(models.folder()))
    assert drafted.config.num_blocks == alone.config.num_blocks // 2
    assert drafted.config.kv_cache_bytes <= 1 << 20


def _other(models: Models, folder: Path, change: str) -> Path:
    shutil.copytree(models.folder(), folder)
    if change == "size":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 321}))
    else:
        file = folder / "tokenizer.json"
        told = json.loads(file.read_text())
        words = told["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]
        file.write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size", "has a vocabulary of 321 tokens, the engine's model one of 320: use a draft model"),
        ("words", "has other tokens than the engine's model under the same ids: use a draft model"),
    ],
)
def test_a_draft_model_with_another_vocabulary_is_refused_at_load(
    models: Models, open_llm: Open, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_llm(speculative_config=by(_other(models, tmp_path / "other", change)))


def test_a_draft_model_that_cannot_be_is_refused_at_load(models: Models, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at"):
        LLM(str(models.folder()), device="cpu", speculative_config=by(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="all layers of the model slide.*use method='ngram'"):
        LLM(str(models.folder("mistral")), device="cpu", speculative_config=by(models.folder()))
