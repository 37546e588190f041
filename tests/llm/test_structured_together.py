"""Constrained requests among others: how a step is made up changes no token, and each ends as it has to."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.llm import tiny
from tests.llm.asking import compile_grammars, prompts
from tests.llm.conftest import Models, Open
from workbench import LLM, RequestOutputKind, SamplingParams, StructuredOutputsParams

PATTERN = "([a-c]{2}|[0-9]){4,6}"
CHOICES = ["the bird", "the tree and the river", "x"]


def constrained(seed: int, **options: Any) -> SamplingParams:
    constraint = (
        StructuredOutputsParams(regex=PATTERN) if seed % 2 else StructuredOutputsParams(choice=CHOICES)
    )
    return SamplingParams(**{"seed": seed, "max_tokens": 24, "structured_outputs": constraint} | options)


def mixed() -> list[SamplingParams]:
    """The last that fits into a tight cache, and is preempted first, is constrained."""
    free = [SamplingParams(seed=9, max_tokens=10), SamplingParams(temperature=0, max_tokens=14)]
    return [constrained(1), free[0], free[1], constrained(2), constrained(3, temperature=0), constrained(5)]


def tokens(llm: LLM, params: list[SamplingParams]) -> list[list[int]]:
    outputs = llm.generate(prompts(len(params)), params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


WAYS: dict[str, dict[str, Any]] = {
    "overlapped": {"async_scheduling": True},
    "overlapped, chunked": {"async_scheduling": True, "max_num_batched_tokens": 16, "max_num_seqs": 4},
    "chunked": {"max_num_batched_tokens": 16, "max_num_seqs": 4},
    "tight": {"num_gpu_blocks_override": 10, "block_size": 8, "max_model_len": 80},
    "overlapped, tight": {
        "num_gpu_blocks_override": 10, "block_size": 8, "max_model_len": 80, "async_scheduling": True,
    },
    "no cache": {"enable_prefix_caching": False, "async_scheduling": True},
}  # fmt: skip


@pytest.fixture
def expected(open_llm: Open) -> list[list[int]]:
    with open_llm() as llm:
        return tokens(llm, mixed())


@pytest.mark.parametrize("way", WAYS)
def test_tokens_do_not_depend_on_how_steps_are_made_up(
    open_llm: Open, expected: list[list[int]], way: str
) -> None:
    llm = open_llm(**WAYS[way])
    compile_grammars(llm, mixed())
    assert tokens(llm, mixed()) == expected
    if "tight" in way:
        preempted = llm.trace.requests.set_index("request_id")["preemptions"]
        assert preempted[["0", "3", "4", "5"]].sum() > 0, "none of the constrained was preempted"


def test_stepping_gives_the_same_tokens(open_llm: Open, expected: list[list[int]]) -> None:
    llm = open_llm(async_scheduling=True)
    for index, (prompt, params) in enumerate(zip(prompts(6), mixed(), strict=True)):
        llm.add_request(prompt, params, request_id=f"r{index}")
    found: dict[str, list[int]] = {}
    while llm.has_unfinished_requests():
        for output in llm.step().outputs:
            found[output.request_id] = list(output.outputs[0].token_ids)
    assert [found[f"r{index}"] for index in range(6)] == expected


def test_overlapped_a_constrained_request_is_in_every_step_like_the_others(open_llm: Open) -> None:
    """Its mask is made when the step is under way, and its last token known."""
    llm = open_llm(async_scheduling=True)
    free = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    long = SamplingParams(
        temperature=0, max_tokens=8, structured_outputs=StructuredOutputsParams(regex="[ab]{40}")
    )
    llm.generate([[5, 6, 7], [8, 9]], [free, long], use_tqdm=False)
    shares = llm.trace.step_requests
    for name, count in (("0", 20), ("1", 8)):
        steps = shares[shares["request_id"] == name]["step"].tolist()
        assert steps == list(range(steps[0], steps[0] + count))


def test_the_n_outputs_of_a_prompt_have_their_own_way_through_the_grammar(open_llm: Open) -> None:
    llm = open_llm(async_scheduling=True)
    (output,) = llm.generate("the bird", constrained(1, n=8), use_tqdm=False)
    ended = [one.text for one in output.outputs if one.finish_reason == "stop"]
    assert len(set(ended)) > 1
    assert all(re.fullmatch(PATTERN, text) for text in ended)


def test_logprobs_are_raw_or_of_what_the_grammar_left(open_llm: Open) -> None:
    params = constrained(2, temperature=0, logprobs=20)
    raw = open_llm(logprobs_mode="raw_logprobs").generate("the", params, use_tqdm=False)[0].outputs[0]
    processed = (
        open_llm(logprobs_mode="processed_logprobs").generate("the", params, use_tqdm=False)[0].outputs[0]
    )
    assert raw.token_ids == processed.token_ids
    for before, after in zip(raw.logprobs, processed.logprobs, strict=True):
        assert all(entry.logprob > -1e9 for entry in before.values())
        left = [token for token, entry in after.items() if entry.logprob > -1e9]
        assert 1 <= len(left) < len(after), "the mask shows"


def test_a_stop_string_ends_before_the_grammar_does(open_llm: Open) -> None:
    params = SamplingParams(
        temperature=0, stop="re", structured_outputs=StructuredOutputsParams(choice=["the tree"])
    )
    (output,) = open_llm().generate("a", params, use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].stop_reason) == ("the t", "re")


def test_an_aborted_request_leaves_its_row_to_the_next_with_another_grammar(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=1, async_scheduling=True)
    stream = llm.stream(
        "the", SamplingParams(max_tokens=30, structured_outputs=StructuredOutputsParams(regex="a{60}"))
    )
    assert set(next(stream).outputs[0].text) <= {"a"}
    stream.close()
    (output,) = llm.generate("the", constrained(4), use_tqdm=False)
    assert output.outputs[0].text in CHOICES


def test_what_is_streamed_adds_up(open_llm: Open) -> None:
    llm = open_llm()
    params = constrained(1, output_kind=RequestOutputKind.DELTA)
    (whole,) = llm.generate("the", constrained(1), use_tqdm=False)
    assert "".join(out.outputs[0].text for out in llm.stream("the", params)) == whole.outputs[0].text


def test_options_that_leave_no_token_end_their_request_alone(open_llm: Open) -> None:
    llm = open_llm(async_scheduling=True)
    letters = llm.get_tokenizer().encode("z", add_special_tokens=False)
    lost = constrained(2, allowed_token_ids=letters)
    outputs = llm.generate(["the", "the"], [lost, constrained(2)], use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "stop"]
    assert outputs[1].outputs[0].text in CHOICES


def test_a_prompt_longer_than_a_step_is_constrained_from_its_end_on(open_llm: Open) -> None:
    llm = open_llm(max_num_batched_tokens=8, max_num_seqs=2)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    params = SamplingParams(
        max_tokens=40, structured_outputs=StructuredOutputsParams(json=schema, disable_any_whitespace=True)
    )
    (output,) = llm.generate([list(range(3, 60))], params, use_tqdm=False)
    assert isinstance(json.loads(output.outputs[0].text)["a"], bool)


def test_a_tokenizer_that_marks_words_by_their_space_spells_the_same_choices(
    models: Models, tmp_path: Path
) -> None:
    folder = shutil.copytree(models.folder("llama"), tmp_path / "spaced")
    tiny.write_spaced_tokenizer(folder)
    choices = ["the river", "tree", "Bär 🐻"]
    params = SamplingParams(
        n=12, seed=3, max_tokens=30, structured_outputs=StructuredOutputsParams(choice=choices)
    )
    with LLM(str(folder), device="cpu", max_model_len=128) as llm:
        (output,) = llm.generate("the bird", params, use_tqdm=False)
    assert {one.text for one in output.outputs} <= set(choices)
    assert len({one.text for one in output.outputs}) > 1
