"""Training lowers the loss, resumes as if nothing had happened, and leaves what transformers reads."""

from __future__ import annotations

import csv
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench.models.zoo import config, data, export, sample, score, tokens, train
from workbench.models.zoo.config import TrainConfig
from workbench.models.zoo.corpus import tasks

PROMPTS = (
    "Once upon a time",
    "Compute: 12 + 30\nAnswer:",
    "<|user|>Tell me a story about a fox.<|assistant|>",
)


def losses(folder: Path) -> list[float]:
    with (folder / "train.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_fifty_steps_lower_the_loss(trained: Path, toy: TrainConfig) -> None:
    found = losses(trained)
    assert len(found) == toy.max_steps // toy.log_every
    assert found[-1] < found[0] - 1.5


def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(
    toy: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(toy, rows=2, max_steps=8, log_every=2)
    whole = train.train(short, tmp_path / "whole", device="cpu")
    step = train.Run.step

    def interrupted(run: train.Run, feed: data.Feed) -> torch.Tensor:
        if run.progress.step == 3:
            signal.raise_signal(signal.SIGINT)
        return step(run, feed)

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "step", interrupted)
        halves = train.train(short, tmp_path / "halves", device="cpu")
    assert len(losses(halves)) == 2, "stopped behind step 4, with two lines of log"
    train.train(short, tmp_path / "halves", device="cpu")
    assert losses(halves) == losses(whole)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, halves))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_checkpoint_of_another_configuration_is_refused(trained: Path, toy: TrainConfig) -> None:
    before = (trained / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"another configuration \(toy, .*give another --out, or delete"):
        train.train(replace(toy, seed=toy.seed + 1), trained, device="cpu")
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_finished_run_is_not_trained_further(trained: Path, toy: TrainConfig) -> None:
    before = losses(trained)
    weights = (trained / "model.safetensors").read_bytes()
    train.train(toy, trained, device="cpu")
    assert losses(trained) == before
    assert (trained / "model.safetensors").read_bytes() == weights


def test_transformers_computes_the_same_logits_and_the_same_greedy_text(trained: Path) -> None:
    mine = export.load(trained)
    theirs = AutoModelForCausalLM.from_pretrained(str(trained), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(trained))
    encoded = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    answers = sample.greedy(mine, encoded, 12)
    for ids, answer in zip(encoded, answers, strict=True):
        with torch.no_grad():
            row = torch.tensor([ids])
            torch.testing.assert_close(mine.logits(mine.hidden(row)), theirs(row).logits, rtol=0, atol=1e-4)
            new = theirs.generate(row, max_new_tokens=12, do_sample=False)[0, len(ids) :]
        assert tokenizer.decode(answer) == tokenizer.decode(new, skip_special_tokens=True)


def test_the_batches_do_not_depend_on_the_number_of_workers(toy: TrainConfig) -> None:
    config = replace(toy, rows=2, workers=2)
    feed = data.Feed(config, tokens.FOLDER, start=3)
    try:
        made = [feed.next() for _ in range(3)]
    finally:
        feed.close()
    encoder = tokens.Encoder(tokens.FOLDER)
    for index, batch in enumerate(made, start=3):
        expected = data.make_batch(config, encoder, index)
        np.testing.assert_array_equal(batch.tokens, expected.tokens)
        np.testing.assert_array_equal(batch.weights, expected.weights)


def test_packed_rows_hold_whole_documents(toy: TrainConfig) -> None:
    batch = data.make_batch(toy, tokens.Encoder(tokens.FOLDER), 0)
    assert batch.tokens.shape == (toy.rows, toy.row_tokens + 1)
    for row in batch.tokens:
        text = row[: np.flatnonzero(row)[-1] + 1]
        assert text[0] == tokens.BOS_ID
        assert text[-1] == tokens.EOS_ID
    filled = np.count_nonzero(batch.tokens) / batch.tokens.size
    assert filled > 0.8
    assert not batch.weights[batch.tokens == tokens.BOS_ID].any()


def test_scores_count_exact_matches(trained: Path) -> None:
    model, encoder = export.load(trained), tokens.Encoder(trained)
    item = tasks.make("arithmetic", "heldout", 0, 0, "add2")
    prompt = [tokens.BOS_ID, *encoder.encode(item.prompt)]
    said = encoder.core.decode(sample.greedy(model, [prompt], 8)[0])
    length = [5] * 7  # of the longest answer: eight tokens are generated, one for its end
    pairs = [(item._replace(completion=text), score.Encoded(prompt, length)) for text in (said, "no")]
    found = score.one_kind(model, encoder, "arithmetic", "add2", pairs)
    assert (found.n, found.right) == (2, 1)


@pytest.mark.parametrize("task", tasks.PLAIN, ids=lambda task: task.name)
def test_the_answer_ends_before_the_next_question_of_a_training_text(task: tasks.Task) -> None:
    for index in range(20):
        item = tasks.make(task.name, "train", 6, index)
        assert score.said(item.completion, task.name) == item.completion
        if item.more:  # what a model generates that goes on as the training texts do
            assert score.said(item.text.removeprefix(item.prompt), task.name) == item.completion


def test_the_interval_is_wilsons() -> None:
    low, high = score.wilson(8, 10)
    # The bounds solve (p - x)^2 = z^2 x (1 - x) / n, Wilson's own equation.
    for bound in (low, high):
        assert (0.8 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 10)
    assert score.wilson(0, 10)[0] == 0.0
    assert score.wilson(10, 10)[1] == pytest.approx(1.0)


def test_a_missing_configuration_is_refused_by_name() -> None:
    with pytest.raises(
        OSError, match=r"no training configuration 'wren-9000': give a TOML file or one of .*toy"
    ):
        config.load("wren-9000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[mixture]\npoetry = 1.0", "unknown task 'poetry': choose one of stories"),
        ("max_steps = 5\nrowz = 3\n[mixture]\nstories = 1.0", "unknown key 'rowz' in .*: choose from name"),
        (
            "max_steps = 5\nmax_minutes = 1.0\n[mixture]\nstories = 1.0",
            "set exactly one of max_minutes and max_steps",
        ),
        ("max_steps = 5\n[mixture]", r"\[mixture\] gives no task.*set a share above 0"),
        ("max_steps = 5\n[mixture]\nstories = 0", "set a share above 0 for each task"),
        ("max_steps = 5\n[mixture]\nstories = -1", "stories is -1: give a number of at least 0"),
        (
            "max_steps = 'two'\n[mixture]\nstories = 1",
            "max_steps is 'two': give a whole number of at least 0",
        ),
        ("max_steps = 5\nlog_every = 0\n[mixture]\nstories = 1", "log_every is 0: give a whole number of at"),
        ("max_minutes = nan\n[mixture]\nstories = 1", "max_minutes is nan: give a number"),
        ("max_steps = 5\ndtype = 'int7'\n[mixture]\nstories = 1", "'int7': choose one of bfloat16, float32"),
        ("max_steps = 5\ncompile = 3\n[mixture]\nstories = 1", "compile is 3: give true or false"),
        ("max_steps = 5\nmixture = 3", r"mixture is 3: give a table \[mixture\] of shares"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_remedy(change: str, message: str, tmp_path: Path) -> None:
    shape = "hidden_size=8\nnum_layers=1\nnum_heads=1\nnum_kv_heads=1\nhead_dim=8\nintermediate_size=8"
    path = tmp_path / "bad.toml"
    path.write_text(
        f'name = "bad"\nrows = 1\nrow_tokens = 64\n{change}\n[model]\n{shape}\n', encoding="utf-8"
    )
    with pytest.raises(ValueError, match=message):
        config.load(str(path))


def test_a_file_that_is_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.toml is not a TOML file"):
        config.load(str(path))


def test_a_configuration_without_a_needed_key_says_which(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text('name = "bare"\nmax_steps = 1\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks 'mixture': add it"):
        config.load(str(path))
    path.write_text("name = 'bare'\nrows = 1\nrow_tokens = 8\n[mixture]\n[model]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks 'hidden_size': add it"):
        config.load(str(path))


def test_heads_that_do_not_share_their_keys_evenly_are_refused(toy: TrainConfig) -> None:
    odd = replace(toy, model=replace(toy.model, num_heads=4, num_kv_heads=3))
    with pytest.raises(ValueError, match="make num_heads a multiple of num_kv_heads"):
        config.check_values(odd, "here")


@pytest.mark.parametrize("content", [b"garbage", b"", b"PK\x03\x04cut"])
def test_a_damaged_checkpoint_is_refused_with_the_remedy(
    content: bytes, toy: TrainConfig, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no checkpoint: delete it to start anew"):
        train.train(toy, tmp_path, device="cpu")


def test_rows_too_short_for_every_text_are_refused(toy: TrainConfig) -> None:
    short = replace(toy, row_tokens=16, mixture={"stories": 1.0})
    with pytest.raises(ValueError, match="none fits a row of 16 tokens: raise row_tokens"):
        data.make_batch(short, tokens.Encoder(tokens.FOLDER), 0)


def test_a_run_of_one_step_has_one_line_of_log(toy: TrainConfig, tmp_path: Path) -> None:
    assert len(losses(train.train(replace(toy, rows=1, max_steps=1), tmp_path, device="cpu"))) == 1


def test_a_config_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="lacks 'hidden_size': give a folder that"):
        export.load(tmp_path)
