"""lm_eval and inspect_ai through the engine: lm_eval's own `hf` model gives the same numbers."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task as InspectTask
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample as Question
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import exact
from inspect_ai.tool import ToolInfo
from inspect_ai.util import json_schema
from lm_eval.api.registry import get_model as lm_eval_model
from lm_eval.evaluator import evaluate as lm_eval_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from workbench import LLM, SamplingParams
from workbench.bench.harness import Options, measure
from workbench.evals import make_task
from workbench.evals.lm_eval_model import WorkbenchLM
from workbench.evals.lm_eval_tasks import lm_eval_task
from workbench.evals.tasks import Sample, Task
from workbench.evals.zoo_tasks import zoo_task
from workbench.models.folder import resolve

ROOT = Path(__file__).parents[2]
MODEL = "zoo/wren-1m"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, device="cpu") as llm:
        yield llm


@pytest.fixture(scope="module")
def short(llm: LLM) -> WorkbenchLM:
    """Holds so little that texts are cut and go into windows."""
    return WorkbenchLM(llm, max_length=64)


@pytest.fixture(scope="module")
def hf() -> HFLM:
    folder = str(resolve(MODEL))
    return HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4, max_length=64)


def answers(model: Any, task: Task, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """What lm_eval makes of a model: its figures, and every sample's responses."""
    loaded = TaskManager(include_defaults=False).load([lm_eval_task(task, folder)])
    found = lm_eval_evaluate(model, loaded["tasks"], bootstrap_iters=0)
    return found["results"][task.name], [one["resps"] for one in found["samples"][task.name]]


def test_multiple_choice_is_that_of_lm_evals_own_model(short: WorkbenchLM, hf: HFLM, tmp_path: Path) -> None:
    task = zoo_task("continuations", 5)  # whose contexts are longer than what these two hold
    (ours, mine), (theirs, due) = answers(short, task, tmp_path), answers(hf, task, tmp_path)
    assert ours["acc,none"] == theirs["acc,none"] > 0.25
    logprobs = [[choice[0][0] for choice in sample] for sample in mine]
    assert logprobs == [pytest.approx([choice[0][0] for choice in sample], abs=1e-3) for sample in due]
    greedy = [[choice[0][1] for choice in sample] for sample in mine]
    assert greedy == [[choice[0][1] for choice in sample] for sample in due]


def test_generated_answers_are_those_of_lm_evals_own_model(
    short: WorkbenchLM, hf: HFLM, tmp_path: Path
) -> None:
    for task in (zoo_task("arithmetic", 6), zoo_task("lookup", 3)):
        (ours, mine), (theirs, due) = answers(short, task, tmp_path), answers(hf, task, tmp_path)
        assert mine == due
        assert ours == theirs


def test_rolling_perplexity_is_that_of_lm_evals_own_model(
    short: WorkbenchLM, hf: HFLM, tmp_path: Path
) -> None:
    task = zoo_task("stories", 3)  # of several windows each
    (ours, mine), (theirs, due) = answers(short, task, tmp_path), answers(hf, task, tmp_path)
    assert ours["word_perplexity,none"] == pytest.approx(theirs["word_perplexity,none"], rel=1e-5)
    assert [one[0][0] for one in mine] == pytest.approx([one[0][0] for one in due], abs=1e-3)


def test_a_context_that_choices_share_is_computed_once(llm: LLM, tmp_path: Path) -> None:
    task = zoo_task("continuations", 2)
    llm.reset_prefix_cache()
    with llm.trace.record() as trace:
        answers(WorkbenchLM(llm), task, tmp_path)
    requests = trace.requests
    once = requests["prompt_tokens"].sum() - requests["cached_tokens"].sum()
    assert len(requests) == 8
    assert once < 0.4 * requests["prompt_tokens"].sum()


def test_lm_eval_finds_the_model_by_its_name() -> None:
    assert lm_eval_model("workbench") is WorkbenchLM
    model = WorkbenchLM.create_from_arg_string(
        f"model={MODEL},max_model_len=128", {"batch_size": 4, "device": "cpu"}
    )
    with model.llm as llm:
        assert llm.config.max_model_len == 128
        assert model.max_length == 127


def test_what_lm_evals_model_cannot_do_is_refused(llm: LLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="and block_size for another one"):
        WorkbenchLM(llm, block_size=16)
    with pytest.raises(ValueError, match=r"max_length is 99999: use 1 to \d+"):
        WorkbenchLM(llm, max_length=99999)
    with pytest.raises(TypeError, match="num_beams"):
        WorkbenchLM(llm)._params({"num_beams": 4})
    with pytest.raises(ValueError, match="an answer of 32 tokens leaves no room"):
        answers(WorkbenchLM(llm, max_length=32), make_task("t", "exact", [Sample("a", "b")]), tmp_path)
    with pytest.raises(ValueError, match="a continuation has"):
        WorkbenchLM(llm, max_length=2)._loglikelihood_tokens([(None, [1], [5, 6, 7])], disable_tqdm=True)
    with pytest.raises(ValueError, match="no measure for 'json'"):
        lm_eval_task(zoo_task("records", 1), tmp_path)


# --- inspect_ai -----------------------------------------------------------------------------------------


def test_the_package_tells_inspect_ai_of_its_provider() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    assert importlib.import_module(told["workbench"]).WorkbenchAPI


def test_an_inspect_ai_task_gets_the_engines_answers(llm: LLM, tmp_path: Path) -> None:
    questions = [sample.prompt for sample in zoo_task("arithmetic", 6).samples]
    asked = SamplingParams(temperature=0, max_tokens=8)
    due = [
        one.outputs[0].text for one in llm.chat([[{"role": "user", "content": q}] for q in questions], asked)
    ]
    task = InspectTask(
        dataset=[Question(input=q, target=text) for q, text in zip(questions, due, strict=True)],
        scorer=exact(),
        config=GenerateConfig(temperature=0, max_tokens=8),
    )
    (log,) = inspect_eval(
        task, model=f"workbench/{MODEL}", model_args={"device": "cpu"}, display="none", log_dir=str(tmp_path)
    )
    assert log.status == "success", log.error
    assert log.results is not None
    assert log.results.scores[0].metrics["mean"].value == 1.0
    assert log.samples is not None
    assert [sample.output.completion for sample in log.samples] == due
    usage = log.samples[0].output.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > usage.output_tokens > 0


async def asked(question: str, **config: Any) -> Any:
    model = get_model(f"workbench/{MODEL}", device="cpu", memoize=False)
    try:
        return await model.generate(question, config=GenerateConfig(**config))
    finally:
        model.api.close()


def test_inspect_ai_gets_logprobs_choices_and_schemas(llm: LLM) -> None:
    output = asyncio.run(
        asked("Compute: 2 + 3", temperature=0, max_tokens=4, logprobs=True, top_logprobs=3, num_choices=2)
    )
    assert len(output.choices) == 2
    due = llm.chat(
        [{"role": "user", "content": "Compute: 2 + 3"}],
        SamplingParams(temperature=0, max_tokens=4, logprobs=3),
    )[0].outputs[0]
    content = output.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(
        [entry[token].logprob for token, entry in zip(due.token_ids, due.logprobs or (), strict=True)],
        abs=1e-4,
    )
    assert all(one.top_logprobs[0].logprob >= one.top_logprobs[-1].logprob for one in content)
    schema = ResponseSchema(name="sum", json_schema=json_schema(bool))
    output = asyncio.run(asked("Is it?", temperature=0, max_tokens=8, response_schema=schema))
    assert isinstance(json.loads(output.completion), bool)


def test_what_the_provider_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="best_of is not supported"):
        asyncio.run(asked("a", best_of=3))
    with pytest.raises(ValueError, match="base_url is 'http://here'"):
        get_model(f"workbench/{MODEL}", base_url="http://here", memoize=False)

    async def with_tools() -> None:
        model = get_model(f"workbench/{MODEL}", device="cpu", memoize=False)
        try:
            await model.generate("a", tools=[ToolInfo(name="look", description="looks")])
        finally:
            model.api.close()

    with pytest.raises(ValueError, match="offers 1 tools"):
        asyncio.run(with_tools())


def test_the_benchmark_finds_the_same_answers_in_less_work(tmp_path: Path) -> None:
    rows, summary = measure(Options(MODEL, 3, (2, 4), 2, 1, seed=0))
    assert [row["engine"] for row in rows] == ["hf", "workbench"]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    assert rows[0]["ratio"] == 1.0 != rows[1]["ratio"] > 0
    assert summary["largest_difference_of_logprobs"] < 1e-2
    assert set(summary["hf_seconds_by_batch_size"]) == {2, 4}
    with pytest.raises(ValueError, match="count from 1"):
        measure(Options(MODEL, 0, (2,), 2, 1, seed=0))


def test_the_shell_runs_lm_eval_with_this_engine(tmp_path: Path) -> None:
    task = lm_eval_task(zoo_task("arithmetic", 2), tmp_path)
    (tmp_path / "arithmetic.yaml").write_text(json.dumps(task))  # JSON is YAML
    command = [sys.executable, "-m", "workbench", "eval", "lm_eval", "run", "--model_args", f"model={MODEL}"]
    command += [
        "--tasks",
        "arithmetic",
        "--include_path",
        str(tmp_path),
        "--output_path",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (tmp_path / "out").rglob("results*.json")
    assert "exact_match,none" in json.loads(written.read_text())["results"]["arithmetic"]
