"""The embedded models in the package: small, plain Hugging Face folders, and able to tell a story."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench import LLM, SamplingParams
from workbench.models.zoo import registry, tokens
from workbench.models.zoo.corpus import tasks

PROMPTS = (
    "Once upon a time",
    "Compute: 12 + 30\nAnswer:",
    "<|user|>Sort 3, 1, 2 in ascending order.<|assistant|>",
)
TOP = 20  # logits compared a position


@pytest.fixture(scope="module", params=registry.names())
def folder(request: pytest.FixtureRequest) -> Path:
    return registry.path(request.param)


def test_the_default_is_there_under_both_its_names() -> None:
    assert registry.DEFAULT in registry.names()
    assert registry.path(registry.DEFAULT) == registry.path(f"zoo/{registry.DEFAULT}")


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=f"no embedded model 'zoo/wren-0': choose one of .*{registry.DEFAULT}"
    ):
        registry.path("zoo/wren-0")


@pytest.mark.parametrize(
    ("name", "parameters", "weights", "whole"),  # most of each; the last two in bytes
    [("wren-8m", 8_000_000, 16_000_000, 16_000_000), ("wren-1m", 1_000_000, 2_000_000, 2_500_000)],
)
def test_a_model_stays_small(name: str, parameters: int, weights: int, whole: int) -> None:
    folder = registry.path(name)
    assert (folder / "model.safetensors").stat().st_size <= weights
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert sum(map(math.prod, shapes)) <= parameters
    assert kinds == {"BF16"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= whole


def test_every_model_has_the_shared_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (tokens.FOLDER / name).read_bytes()


def test_the_card_shows_its_plot_and_where_the_numbers_come_from(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    assert card.startswith(f"# {folder.name}\n")
    for name in ("loss.svg", "train.csv", "heldout.csv"):
        assert name in card
        assert (folder / name).stat().st_size > 0
    for part in ("Held-out scores", "Prompt formats", "Samples", "Limits", "Apache-2.0"):
        assert part in card
    assert all(f"| {name} |" in card or f"| **{name}** |" in card for name in tasks.NAMES)


def test_transformers_gives_the_same_logits_and_greedy_text_as_the_engine(folder: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    # Logits in float64: those of wren-1m reach 50, and in float32 transformers is 1.1e-4 off its own.
    exact = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=TOP)
    with LLM(f"zoo/{folder.name}", dtype="float32", device="cpu", logprobs_mode="raw_logits") as llm:
        results = llm.generate(list(PROMPTS), params, use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        assert list(result.prompt_token_ids) == ids
        said = result.outputs[0]
        with torch.no_grad():
            new = reference.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
            logits = exact(torch.tensor([[*ids, *said.token_ids]])).logits[0, len(ids) - 1 :]
        assert said.text == tokenizer.decode(new, skip_special_tokens=True)
        assert said.logprobs is not None
        for position, entries in enumerate(said.logprobs):
            assert len(entries) >= TOP
            for token, entry in entries.items():
                assert entry.logprob == pytest.approx(float(logits[position, token]), abs=1e-4)


def test_the_default_model_tells_whole_stories() -> None:
    items = [tasks.make("stories", "heldout", 7, index, "asked") for index in range(6)]
    with LLM(dtype="float32", device="cpu") as llm:
        params = SamplingParams(temperature=0.0, max_tokens=400)
        results = llm.generate([item.prompt for item in items], params, use_tqdm=False)
    for item, result in zip(items, results, strict=True):
        said = result.outputs[0]
        words = re.findall(r"[a-z']+", said.text.lower())
        triples = list(zip(words, words[1:], words[2:], strict=False))
        hero = item.prompt.removeprefix("Write a story about a").removeprefix("n").split(" and ")[0].strip()
        assert said.finish_reason == "stop", said.text
        assert len(words) >= 50, said.text
        assert len(set(triples)) >= 0.85 * len(triples), said.text
        assert hero in said.text, said.text
        assert said.text.count('"') % 2 == 0, said.text
