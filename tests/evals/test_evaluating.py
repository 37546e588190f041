"""Evaluations against the model itself asked in other ways, kept, gone on with, and compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workbench import LLM, SamplingParams
from workbench.evals import Sample, Task, compare, evaluate, evaluating, make_task, read_task, summarize
from workbench.evals.comparing import mcnemar
from workbench.models.folder import resolve

MODEL = "zoo/wren-1m"
DATA = Path(__file__).parents[2] / "datasets/zoo"
LETTERS = (" A", " B", " C", " D")


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, device="cpu", max_model_len=512) as llm:
        yield llm


@pytest.fixture(scope="module")
def sentiment() -> Task:
    return read_task(DATA / "sentiment.heldout.jsonl", limit=12)


@pytest.fixture(scope="module")
def choice() -> Task:
    plain = read_task(DATA / "choice.heldout.jsonl", limit=8)
    return make_task("choice", "choice", [one._replace(choices=LETTERS) for one in plain.samples])


@pytest.fixture(scope="module")
def told() -> Task:
    return make_task(
        "told", "perplexity", [Sample("Once", " upon a time there was a fox."), Sample("The", " sea")]
    )


def test_generated_answers_are_those_of_generate(llm: LLM, sentiment: Task) -> None:
    rows = evaluate(llm, sentiment, use_tqdm=False)
    assert len(rows) == 12
    for sample, (_, row) in zip(sentiment.samples, rows.iterrows(), strict=True):
        due = len(llm.get_tokenizer().encode(sample.completion, add_special_tokens=False))
        params = SamplingParams(temperature=0, max_tokens=due + 8)
        alone = llm.generate(sample.prompt, params, use_tqdm=False)[0]
        assert row["output"] == alone.outputs[0].text
        assert row["score"] == float(alone.outputs[0].text.strip() == sample.completion.strip())
        assert (row["prompt_tokens"], row["output_tokens"]) == (
            len(alone.prompt_token_ids),
            len(alone.outputs[0].token_ids),
        )


def transformers_logprob(prompt: str, completion: str) -> tuple[float, int]:
    """Of the completion behind the prompt, by transformers in float32."""
    folder = resolve(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(prompt + completion)["input_ids"]
    context = len(tokenizer(prompt)["input_ids"])
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [float(logprobs[place - 1, ids[place]]) for place in range(context, len(ids))]
    return math.fsum(found), len(found)


def test_the_choice_is_the_one_that_transformers_finds_likeliest(llm: LLM, choice: Task) -> None:
    rows = evaluate(llm, choice, use_tqdm=False)
    for sample, (_, row) in zip(choice.samples, rows.iterrows(), strict=True):
        found = [transformers_logprob(sample.prompt, one)[0] for one in sample.choices]
        assert row["output"] == sample.choices[int(np.argmax(found))]
        assert row["logprob"] == pytest.approx(max(found), abs=1e-4)
        assert row["score"] == float(row["output"] == sample.completion)


def test_perplexity_is_transformers(llm: LLM, told: Task) -> None:
    rows = evaluate(llm, told, use_tqdm=False)
    total, count = 0.0, 0
    for sample, (_, row) in zip(told.samples, rows.iterrows(), strict=True):
        logprob, tokens = transformers_logprob(sample.prompt, sample.completion)
        assert row["score"] == pytest.approx(math.exp(-logprob / tokens), rel=1e-4)
        total, count = total + logprob, count + tokens
    assert summarize(rows)["score"].iloc[0] == pytest.approx(math.exp(-total / count), rel=1e-4)


def test_a_json_task_says_whether_the_answer_was_json(llm: LLM) -> None:
    plain = read_task(DATA / "records.heldout.jsonl")
    task = make_task("records", "json", [one for one in plain.samples if one.kind == "to_json"][:4])
    rows = evaluate(llm, task, use_tqdm=False)
    for _, row in rows.iterrows():
        try:
            assert row["valid"] == isinstance(json.loads(row["output"]), dict)
        except ValueError:
            assert not row["valid"]
            assert row["score"] == 0


def test_the_same_seed_gives_the_same_table(llm: LLM, sentiment: Task) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=6)
    first, second = (
        evaluate(llm, sentiment, sampling_params=params, use_tqdm=False).drop(
            columns=["seconds", "cached_tokens"]
        )
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(first, second)


def test_an_interrupted_evaluation_goes_on_without_asking_again(
    llm: LLM, sentiment: Task, choice: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, asked, most = tmp_path / "rows.jsonl", [], 3
    real = evaluating._ask
    monkeypatch.setattr(evaluating, "AT_ONCE", 5)

    def counted(llm: LLM, task: Task, indices: list[int], *given: Any) -> Any:
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append((task.name, tuple(indices)))
        return real(llm, task, indices, *given)

    monkeypatch.setattr(evaluating, "_ask", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(llm, [sentiment, choice], keep=keep, use_tqdm=False)
    keep.write_text(keep.read_text() + '{"task": "sentiment", "ind')  # as a kill would leave it
    most = 99
    rows = evaluate(llm, [sentiment, choice], keep=keep, use_tqdm=False)
    samples = [(name, index) for name, indices in asked for index in indices]
    assert len(samples) == len(set(samples)) == 20
    whole = evaluate(llm, [sentiment, choice], use_tqdm=False)
    columns = ["task", "index", "output", "score", "prompt_tokens"]
    pd.testing.assert_frame_equal(rows[columns], whole[columns])


def test_rows_of_another_evaluation_are_not_gone_on_with(llm: LLM, sentiment: Task, tmp_path: Path) -> None:
    keep = tmp_path / "rows.jsonl"
    evaluate(llm, sentiment, keep=keep, use_tqdm=False)
    with pytest.raises(ValueError, match="another evaluation: its sampling_params"):
        evaluate(llm, sentiment, sampling_params=SamplingParams(max_tokens=3), keep=keep, use_tqdm=False)
    keep.write_text(keep.read_text().replace('"version": 1', '"version": 0', 1))
    with pytest.raises(ValueError, match="its version is 0"):
        evaluate(llm, sentiment, keep=keep, use_tqdm=False)
    keep.write_text("[]\n")
    with pytest.raises(ValueError, match="no file of this evaluation"):
        evaluate(llm, sentiment, keep=keep, use_tqdm=False)


def test_two_tasks_of_one_name_are_refused(llm: LLM, sentiment: Task) -> None:
    with pytest.raises(ValueError, match="two tasks are called 'sentiment'"):
        evaluate(llm, [sentiment, sentiment])


def table(scores: list[float], metric: str = "exact") -> pd.DataFrame:
    count = len(scores)
    return pd.DataFrame(
        {"task": "t", "metric": metric, "index": range(count), "kind": ["a", "b"] * (count // 2),
         "prompt": [str(n) for n in range(count)], "score": scores,
         "logprob": [-math.log(max(one, 1e-9)) for one in scores], "output_tokens": 1}
    )  # fmt: skip


def test_a_difference_is_one_where_chance_rarely_makes_it() -> None:
    before, after = [0.0] * 20, [1.0] * 8 + [0.0] * 12
    line = compare(table(before), table(after)).iloc[0]
    assert line["difference"] == pytest.approx(0.4)
    assert line["p"] == pytest.approx(2 / 2**8)
    assert line["differs"]
    line = compare(table([1.0, 0.0] * 10), table([0.0, 1.0] * 10)).iloc[0]
    assert line["p"] == 1
    assert not line["differs"]


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (1, 9, 0.021484375), (4, 4, 1.0)]
)
def test_mcnemar_is_a_fair_coin(one: int, other: int, p: float) -> None:
    """Twice the tail of a binomial: 2·(1 + 10) / 2^10 for 1 against 9."""
    assert mcnemar(one, other) == pytest.approx(p)
    assert mcnemar(other, one) == pytest.approx(p)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        scores = rng.uniform(0, 1, 40).tolist()
        line = summarize(table(scores, "json"), seed=seed).iloc[0]
        held += line["low"] <= 0.5 <= line["high"]
    assert 178 <= held <= 199  # 190 ± 3 deviations of 3.1, a little less for a bootstrap of 40


def test_scores_can_be_told_apart_by_kind() -> None:
    found = summarize(table([1.0, 0.0] * 5), by="kind").set_index("kind")
    assert found.loc["a", "score"] == 1
    assert found.loc["b", "score"] == 0
    assert found["n"].tolist() == [5, 5]


def test_different_samples_are_not_paired() -> None:
    with pytest.raises(ValueError, match="4 of t and 6 of t; evaluate the same tasks"):
        compare(table([0.0] * 4), table([0.0] * 6))
