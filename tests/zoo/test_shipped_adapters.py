"""The embedded adapters: small, in PEFT's format, found by name, and able to do what their cards say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench import LLM, LoRARequest, SamplingParams
from workbench.models.zoo import config, registry, score
from workbench.models.zoo.corpus import pirate, tasks


@pytest.fixture(scope="module", params=registry.adapter_names())
def folder(request: pytest.FixtureRequest) -> Path:
    return registry.adapter_path(f"zoo/{request.param}")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(dtype="float32", device="cpu", enable_lora=True, max_loras=2) as llm:
        yield llm


def test_there_is_one_for_each_of_their_tasks() -> None:
    assert registry.adapter_names() == sorted(tasks.ADAPTER_NAMES)


def test_an_adapter_is_small_and_says_what_it_is_for(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    said = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    made = config.load(folder.name)
    assert made.adapter is not None
    assert said["base_model_name_or_path"] == f"zoo/{made.adapter.base}"
    assert (said["r"], said["lora_alpha"]) == (made.adapter.rank, made.adapter.alpha)


def test_its_card_has_scores_with_and_without_and_is_of_this_configuration(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith(f"# {folder.name}\n")
    assert f"Configuration fingerprint {config.load(folder.name).fingerprint}," in card
    for kind in tasks.kinds_of(folder.name):
        assert f"| {folder.name} | {kind} |" in card
    for part in ("| without | with |", "loss.svg", "train.csv", "Apache-2.0"):
        assert part in card


def answers(llm: LLM, prompts: list[str], adapter: str, tokens: int = 40) -> tuple[list[str], list[str]]:
    """Without and with it, in one batch, of so many tokens at most."""
    asked = [None] * len(prompts) + [LoRARequest(adapter, 1 + len(adapter), f"zoo/{adapter}")] * len(prompts)
    params = SamplingParams(temperature=0, max_tokens=tokens)
    outputs = llm.generate(prompts * 2, params, lora_request=asked, use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    return texts[: len(prompts)], texts[len(prompts) :]


def test_backwards_does_what_the_model_cannot(llm: LLM) -> None:
    items = score.held_out("backwards", "sentence", 20)
    without, having = answers(llm, [item.prompt for item in items], "backwards")
    right = [sum(map(score.is_right, items, texts)) for texts in (without, having)]
    (_, most), (least, _) = (score.wilson(count, len(items)) for count in right)
    assert most < least, right


def test_the_pirate_speaks_the_dialect_and_the_model_does_not(llm: LLM) -> None:
    items = [tasks.make("stories", "heldout", 3, index, "asked") for index in range(6)]
    without, having = answers(llm, [item.prompt for item in items], "pirate", 150)
    assert all(text.startswith(pirate.BEGIN) for text in having)
    assert not any(pirate.BEGIN in text for text in without)
    for texts, word, other in ((having, "th'", "the"), (without, "the", "th'")):
        words = " ".join(texts).lower().split()
        assert words.count(word) > 5 > words.count(other), texts
