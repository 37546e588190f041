"""Adapters of the zoo: their tasks, their training, their folder, and what the engine makes of it."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench import LLM, LoRARequest, SamplingParams
from workbench.__main__ import main
from workbench.models.zoo import config, export, low_rank, registry, tokens, train
from workbench.models.zoo.config import AdapterConfig, TrainConfig
from workbench.models.zoo.corpus import copying, pirate, tasks

SHORT = """
name = "short"
rows = 1
row_tokens = 128
max_steps = 6
log_every = 2
prompt_weight = 0.0
other_lr = 0.02
dtype = "float32"
[adapter]
base = "wren-1m"
rank = 2
alpha = 4.0
[mixture]
backwards = 1.0
"""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    path = tmp_path_factory.mktemp("configs") / "short.toml"
    path.write_text(SHORT, encoding="utf-8")
    return config.load(str(path))


@pytest.fixture(scope="module")
def adapter(short: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train.train(short, tmp_path_factory.mktemp("zoo") / "short", device="cpu")


# --- their tasks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", tasks.kinds_of("backwards"))
def test_words_turned_twice_are_the_line_again(kind: str) -> None:
    for index in range(40):
        item = tasks.make("backwards", "train", 0, index, kind)
        (text,) = re.findall(r"Text:\n(.*)\n\nTask: reverse the order of the words", item.prompt)
        assert len(text.split(" ")) > 1
        assert " ".join(reversed(item.completion.split(" "))) == text


@pytest.mark.parametrize("kind", tasks.kinds_of("pirate"))
def test_the_dialect_changes_words_and_nothing_between_them(kind: str) -> None:
    signs = re.compile(r"[a-z']+", re.IGNORECASE)
    for index in range(40):
        item = tasks.make("pirate", "train", 0, index, kind)
        said = item.completion.removeprefix(pirate.BEGIN).removesuffix(pirate.END)
        assert len(said) == len(item.completion) - len(pirate.BEGIN) - len(pirate.END)
        if kind == "copy":
            plain = item.prompt.removeprefix("Text:\n").partition("\n\nTask:")[0]
            assert signs.sub("*", said) == signs.sub("*", plain)
            assert len(said.split()) == len(plain.split())


def test_words_of_the_dialect_are_not_said_otherwise_a_second_time() -> None:
    """Or an answer would depend on how often it was put into the dialect."""
    for word in (*pirate.WORDS, "Singing", "The", "ring", "king"):
        once = pirate.dialect(word)
        assert once[0].isupper() == word[0].isupper() or not once[0].isalpha()
        assert pirate.WORDS.get(once.lower()) is None


def test_an_adapters_splits_are_those_of_the_model_it_changes() -> None:
    """What it is measured on, its base never saw."""
    for index in range(20):
        facts = pirate.draw(tasks.Dice("pirate", index), "copy")
        assert pirate.content(facts) == copying.content(facts)


# --- training -----------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_leaves_the_base_as_it_is(short: TrainConfig, adapter: Path) -> None:
    with (adapter / "train.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0] - 0.5
    base = load_file(registry.path("wren-1m") / "model.safetensors")
    state = torch.load(adapter / "checkpoint.pt", weights_only=True)["model"]
    for name, weight in base.items():
        stem, _, leaf = name.removeprefix("model.").rpartition(".")
        kept = state.get(f"{stem}.{leaf}", state.get(f"{stem}.parametrizations.{leaf}.original"))
        assert torch.equal(kept, weight.float()), name


def test_an_adapter_that_learnt_nothing_changes_nothing() -> None:
    plain = export.load(registry.path("wren-1m"))
    changed = low_rank.attach(export.load(registry.path("wren-1m")), AdapterConfig("wren-1m", 4, 8.0))
    row = torch.arange(20)[None]
    assert torch.equal(plain.hidden(row), changed.hidden(row))


def test_the_engine_computes_with_the_folder_what_training_computes(adapter: Path) -> None:
    model = low_rank.load(export.load(registry.path("wren-1m")), adapter)
    prompt = [tokens.BOS_ID, *tokens.Encoder(tokens.FOLDER).encode("Text:\na b c\n\nTask:")]
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=-1, ignore_eos=True)
    with LLM("zoo/wren-1m", device="cpu", enable_lora=True, logprobs_mode="raw_logits") as llm:
        asked = LoRARequest("short", 1, str(adapter))
        (output,) = llm.generate([prompt], params, use_tqdm=False, lora_request=asked)
    said = output.outputs[0]
    with torch.no_grad():
        rows = model.logits(model.hidden(torch.tensor([[*prompt, *said.token_ids]])))[0, len(prompt) - 1 :]
    for entries, row in zip(said.logprobs, rows, strict=False):
        found = torch.tensor([entries[token].logprob for token in range(len(row))])
        torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


def test_the_shell_writes_a_card_with_the_scores_of_both(short: TrainConfig, adapter: Path) -> None:
    toml = adapter.parent / "short.toml"
    toml.write_text(SHORT, encoding="utf-8")
    assert main(["zoo", "train", str(toml), "--out", str(adapter), "--device", "cpu", "--items", "2"]) == 0
    card = (adapter / "README.md").read_text("utf-8")
    assert card.startswith("# short\n")
    assert "| backwards | all | 2 | 0.0% (0.0% to 65.8%) | " in card
    assert f"fingerprint {short.fingerprint}" in card
    assert "--adapter short --tasks backwards -n 2" in card
    assert (adapter / "loss.svg").stat().st_size > 0


def test_models_go_by_the_fingerprints_they_were_trained_under(short: TrainConfig) -> None:
    for name in registry.names():
        card = (registry.path(name) / "README.md").read_text("utf-8")
        assert f"Configuration fingerprint {config.load(name).fingerprint}," in card
    other = replace(short, adapter=AdapterConfig("wren-1m", 4, 4.0))
    assert other.fingerprint != short.fingerprint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rank = 2", "rank = 0", "rank is 0: give a whole number of at least 1"),
        ("rank = 2", "", r"\[adapter\] of .*lacks 'rank'"),
        ('base = "wren-1m"', 'base = "pirate"', "base is 'pirate', an adapter: name a model"),
        ("[adapter]", "[model]\nnum_layers = 1\n[adapter]", r"\[model\] beside \[adapter\]: leave it out"),
    ],
)
def test_a_wrong_adapter_is_refused_with_the_remedy(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SHORT.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        config.load(str(path))


def test_an_unknown_adapter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no embedded adapter 'zoo/poet': choose one of"):
        registry.adapter_path("zoo/poet")
    with (
        LLM("zoo/wren-1m", device="cpu", enable_lora=True) as llm,
        pytest.raises(ValueError, match="no embedded adapter 'zoo/poet'"),
    ):
        llm.add_lora(LoRARequest("poet", 1, "zoo/poet"))
