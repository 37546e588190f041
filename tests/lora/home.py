"""Models, adapters and what each makes of a model, in transformers with the products added, in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.llm import tiny
from tests.lora.adapters import ATTENTION, EVERY, MLP, merged, write_adapter
from workbench import LLM, LoRARequest, SamplingParams

FAMILIES = ("llama", "qwen2")
COUNT = 8
NAMES = ("small", "middle", "large")
WHERE = {  # name -> rank, targets, what is special
    "small": (1, EVERY, {}),
    "middle": (8, (*ATTENTION, "embed_tokens", "lm_head"), {"use_rslora": True, "lora_alpha": 4.0}),
    "large": (64, (*MLP, "v_proj", "embed_tokens"), {}),
}


class Home:
    """Base models, adapters and what each makes of a model, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[tuple[str, str | None], Any] = {}

    def base(self, family: str) -> Path:
        folder = self.root / family / "base"
        if not folder.exists():
            tiny.write_tokenizer(tiny.write_model(family, folder))
        return folder

    def adapter(self, family: str, name: str) -> Path:
        folder = self.root / family / name
        if not folder.exists():
            rank, targets, config = WHERE[name]
            model, seed = tiny.load(self.base(family)), NAMES.index(name)
            write_adapter(folder, model, rank, targets, seed=seed, config=config)
        return folder

    def request(self, family: str, name: str | None) -> LoRARequest | None:
        if name is None:
            return None
        return LoRARequest(name, NAMES.index(name) + 1, str(self.adapter(family, name)))

    def oracle(self, family: str, name: str | None) -> Any:
        key = (family, name)
        if key not in self._models:
            base = self.base(family)
            model = tiny.load(base).double() if name is None else merged(self.adapter(family, name), base)
            self._models[key] = model.eval()
        return self._models[key]


def open_llm(folder: Path, **settings: Any) -> LLM:
    plain = {"max_model_len": 96, "max_num_seqs": 8, "enable_lora": True, "max_loras": 3, "max_lora_rank": 64}
    return LLM(str(folder), device="cpu", block_size=8, **plain | settings)


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    dice = random.Random(3)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(17)]
    return [
        shared + [dice.randrange(3, tiny.VOCAB) for _ in range(1 + 5 * i % longest)] for i in range(count)
    ]


def mixed(count: int, names: Sequence[str | None] = (None, *NAMES)) -> list[str | None]:
    return [names[place % len(names)] for place in range(count)]


def assert_are_of(home: Home, family: str, name: str | None, output: Any, mode: str = "raw_logits") -> None:
    """Each token is the oracle's greedy one, and every logit within 1e-4 of it."""
    tokens = list(output.outputs[0].token_ids)
    rows = tiny.logits(home.oracle(family, name), [*output.prompt_token_ids, *tokens])
    expected = rows[len(output.prompt_token_ids) - 1 : -1]
    assert tokens == expected.argmax(-1).tolist(), name
    for entry, row in zip(output.outputs[0].logprobs, expected, strict=True):
        found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
        torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


LOGITS = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=-1)
