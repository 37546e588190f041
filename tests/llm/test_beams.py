"""Beam search: vLLM's rule, computed here in float64 by brute force, and transformers where the two agree."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from tests.llm.processors import Identity
from workbench import LLM, BeamSearchParams, LoRARequest, SamplingParams
from workbench.outputs import BeamSearchOutput

STEPS = 7
TOLERANCE = 2e-4  # of a sum of a few float32 logprobs


def prompts(count: int = 3) -> list[list[int]]:
    dice = random.Random(8)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(5 + 9 * i)] for i in range(count)]


class Hypothesis(NamedTuple):
    tokens: list[int]
    cum_logprob: float
    ended: bool


class Found(NamedTuple):
    best: list[Hypothesis]
    canonical: bool  # whatever completed was among the `width` likeliest of its round


@pytest.fixture(scope="module")
def exact(models: Models) -> Any:
    """The model in float64."""
    return tiny.load(models.folder()).double()


def reference(
    model: Any, prompt: list[int], width: int, steps: int, eos: int | None, penalty: float
) -> Found:
    """vLLM's rule over whole rows of logits, each hypothesis computed anew."""
    alive, completed, canonical = [Hypothesis(prompt, 0.0, False)], [], True
    for _ in range(steps):
        offered = []
        for beam in alive:
            values = tiny.logits(model, beam.tokens)[-1].log_softmax(-1)
            for token in values.argsort(descending=True)[: 2 * width].tolist():
                total = beam.cum_logprob + float(values[token])
                offered.append(Hypothesis([*beam.tokens, token], total, token == eos))
        offered.sort(key=lambda each: -each.cum_logprob)
        canonical &= not any(each.ended for each in offered[width:])
        completed += [each for each in offered if each.ended]
        alive = [each for each in offered if not each.ended][:width]
    everyone = sorted(
        completed + alive,
        key=lambda each: -each.cum_logprob / (len(each.tokens) - each.ended) ** penalty,
    )
    return Found(everyone[:width], canonical)


def likely_end(model: Any, prompt: list[int], rank: int) -> int:
    """A token that is offered after a few greedy ones, to stand for EOS."""
    tokens = tiny.greedy(model, prompt, 3)
    return int(tiny.logits(model, [*prompt, *tokens])[-1].argsort(descending=True)[rank])


def search(llm: LLM, given: Any, **options: Any) -> list[BeamSearchOutput]:
    params = BeamSearchParams(**{"beam_width": 3, "max_tokens": STEPS} | options)
    return llm.beam_search(given, params)


def assert_equal(output: BeamSearchOutput, expected: Found) -> None:
    assert [list(s.tokens) for s in output.sequences] == [each.tokens for each in expected.best]
    sums = [each.cum_logprob for each in expected.best]
    assert [s.cum_logprob for s in output.sequences] == pytest.approx(sums, abs=TOLERANCE)
    ends = ["stop" if each.ended else "length" for each in expected.best]
    assert [s.finish_reason for s in output.sequences] == ends


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_hypotheses_are_those_of_vllms_rule_in_float64(
    models: Models, open_llm: Open, exact: Any, rank: int, penalty: float
) -> None:
    """EOS is a token that is offered: the likeliest somewhere, or one that few beams would take."""
    eos = likely_end(models.oracle(), prompts()[2], rank)
    llm = open_llm(hf_overrides={"eos_token_id": eos}, block_size=4)
    expected = [reference(exact, prompt, 3, STEPS, eos, penalty) for prompt in prompts()]
    outputs = search(llm, prompts(), length_penalty=penalty)
    for output, found in zip(outputs, expected, strict=True):
        assert_equal(output, found)
    assert any(each.ended for found in expected for each in found.best), "the case has to show an end"


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_where_no_eos_comes_hypotheses_are_those_of_transformers(
    models: Models, open_llm: Open, width: int, penalty: float
) -> None:
    model = models.oracle()
    outputs = search(open_llm(), prompts(), beam_width=width, length_penalty=penalty, ignore_eos=True)
    for prompt, output in zip(prompts(), outputs, strict=True):
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=STEPS,
            do_sample=False,
            length_penalty=penalty,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert [list(s.tokens) for s in output.sequences] == found.tolist()


def test_where_early_stopping_and_length_play_no_part_ended_hypotheses_are_those_of_transformers(
    models: Models, open_llm: Open, exact: Any
) -> None:
    model, prompt, compared = models.oracle(), prompts()[0], 0
    without = reference(exact, prompt, 3, STEPS, None, 0.0)
    for eos in {token for each in without.best for token in each.tokens[len(prompt) :]}:
        expected = reference(exact, prompt, 3, STEPS, eos, 0.0)
        if not expected.canonical or not any(each.ended for each in expected.best):
            continue
        compared += 1
        ids = torch.tensor([prompt])
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=STEPS,
            do_sample=False,
            length_penalty=0.0,
            early_stopping="never",
            eos_token_id=eos,
            pad_token_id=eos,
        )
        llm = open_llm(hf_overrides={"eos_token_id": eos})
        (output,) = search(llm, [prompt], length_penalty=0.0)
        for sequence, line in zip(output.sequences, found.tolist(), strict=True):
            assert sequence.tokens == line[: len(sequence.tokens)]
            assert set(line[len(sequence.tokens) :]) <= {eos}, "padding"
    assert compared, "no case in which the two rules must agree"


def test_one_beam_is_greedy(models: Models, open_llm: Open) -> None:
    for prompt, output in zip(prompts(), search(open_llm(), prompts(), beam_width=1), strict=True):
        expected = models.greedy(prompt, STEPS)
        assert output.sequences[0].tokens[len(prompt) :][: len(expected)] == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 16, "max_num_seqs": 4},
        {"enable_prefix_caching": False},
        {"async_scheduling": True},
        {"block_size": 4, "num_gpu_blocks_override": 20, "max_model_len": 64},
        {"logprobs_mode": "processed_logprobs"},
    ],
    ids=["chunked", "without a cache", "overlapped", "tight", "processed"],
)
def test_hypotheses_do_not_depend_on_how_the_engine_schedules(open_llm: Open, settings: dict) -> None:
    assert _tokens(search(open_llm(**settings), prompts())) == _tokens(search(open_llm(), prompts()))


def _tokens(outputs: list[BeamSearchOutput]) -> list[list[list[int]]]:
    return [[s.tokens for s in output.sequences] for output in outputs]


def test_prompts_do_not_depend_on_one_another(open_llm: Open) -> None:
    llm = open_llm()
    together = _tokens(search(llm, prompts()))
    assert [_tokens(search(llm, [prompt]))[0] for prompt in prompts()] == together
    limited = llm.beam_search(prompts(), BeamSearchParams(3, STEPS), concurrency_limit=2)
    assert _tokens(limited) == together


@pytest.mark.parametrize("block_size", [1, 4])
def test_a_round_computes_only_what_no_full_block_holds(open_llm: Open, block_size: int) -> None:
    llm = open_llm(block_size=block_size)
    (prompt,) = prompts(1)
    with llm.trace.record() as trace:
        search(llm, [prompt])
    requests = trace.requests
    assert len(requests) == 1 + 3 * (STEPS - 1)
    found = (requests["prompt_tokens"] - 1) // block_size * block_size
    assert requests["cached_tokens"].tolist()[1:] == found.tolist()[1:]
    if block_size == 1:  # the prompt once, and then each beam's newest token
        assert trace.steps["scheduled"].sum() == len(prompt) + 3 * (STEPS - 1)


def test_a_round_is_one_batch_of_all_beams_of_all_prompts(open_llm: Open) -> None:
    llm = open_llm()
    with llm.trace.record() as trace:
        search(llm, prompts(), ignore_eos=True)
    assert trace.step_requests.groupby("step").size().tolist() == [3] + [9] * (STEPS - 1)


def test_a_sequence_adds_up(open_llm: Open) -> None:
    llm = open_llm()
    for prompt, output in zip(prompts(), search(llm, prompts(), ignore_eos=True), strict=True):
        assert len(output.sequences) == 3
        for sequence in output.sequences:
            out = sequence.tokens[len(prompt) :]
            assert sequence.tokens[: len(prompt)] == prompt
            assert len(sequence.logprobs) == len(out) == STEPS
            total = sum(entry[token].logprob for entry, token in zip(sequence.logprobs, out, strict=True))
            assert sequence.cum_logprob == pytest.approx(total, abs=1e-6)
            assert all(len(entry) == 6 for entry in sequence.logprobs)
            assert sequence.text == llm.get_tokenizer().decode(sequence.tokens)


def test_the_text_shows_eos_only_when_asked(models: Models, open_llm: Open) -> None:
    (prompt,) = prompts(1)
    eos = likely_end(models.oracle(), prompt, 0)
    llm = open_llm(hf_overrides={"eos_token_id": eos})
    decode, shown = llm.get_tokenizer().decode, []
    for wanted in (False, True):
        (output,) = search(llm, [prompt], include_stop_str_in_output=wanted, length_penalty=-5.0)
        ended = next(s for s in output.sequences if s.finish_reason == "stop")
        assert ended.tokens[-1] == eos
        assert ended.text == decode(ended.tokens if wanted else ended.tokens[:-1])
        shown.append(ended.text)
    assert len(shown[0]) < len(shown[1])


def test_every_form_of_a_prompt_is_searched(open_llm: Open) -> None:
    llm = open_llm()
    ids = llm.get_tokenizer().encode("the bird")
    forms = ["the bird", ids, {"prompt": "the bird"}, {"prompt": "the bird", "prompt_token_ids": ids},
             {"prompt_token_ids": ids, "cache_salt": "mine"}]  # fmt: skip
    outputs = search(llm, forms)
    assert all(tokens == _tokens(outputs)[0] for tokens in _tokens(outputs))
    assert _tokens(search(llm, "the bird")) == _tokens(search(llm, ids)) == _tokens(outputs[:1])
    assert search(llm, []) == []


def test_a_salted_search_shares_no_block_with_others(open_llm: Open) -> None:
    llm = open_llm(block_size=4)
    search(llm, prompts(1))
    with llm.trace.record() as trace:
        search(llm, [{"prompt_token_ids": prompts(1)[0], "cache_salt": "mine"}])
    assert trace.requests["cached_tokens"].tolist()[0] == 0
    assert trace.requests["cached_tokens"].tolist()[1:] == [4] * 9 + [8] * 9


def test_a_search_ends_where_the_engine_holds_no_longer_request(open_llm: Open) -> None:
    llm = open_llm(max_model_len=16)
    short, long = [5] * 3, [6] * 12
    outputs = search(llm, [short, long], max_tokens=9, ignore_eos=True)
    assert {len(s.tokens) for s in outputs[0].sequences} == {12}
    assert {len(s.tokens) for s in outputs[1].sequences} == {16}
    assert {s.finish_reason for output in outputs for s in output.sequences} == {"length"}


def test_a_failed_step_ends_its_searches_with_what_they_have(open_llm: Open) -> None:
    llm = open_llm()
    launch = llm._engine.runner.launch

    def failing(plan: Any) -> Any:
        if plan.index == 3:
            raise RuntimeError("injected")
        return launch(plan)

    llm._engine.runner.launch = failing
    (output,) = search(llm, prompts(1), ignore_eos=True)
    assert {s.finish_reason for s in output.sequences} == {"error"}
    assert {len(s.tokens) for s in output.sequences} == {len(prompts(1)[0]) + 3}
    (again,) = search(llm, prompts(1), ignore_eos=True)
    assert {s.finish_reason for s in again.sequences} == {"length"}


def test_a_failed_processor_ends_a_search_with_its_reason(open_llm: Open) -> None:
    class Spoiling(Identity):
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return logits * float("nan")

    (output,) = search(open_llm(logits_processors=[Spoiling]), prompts(1))
    (only,) = output.sequences
    assert only.tokens == prompts(1)[0]
    assert only.finish_reason == "error"
    assert "Spoiling: it left NaN" in only.stop_reason


def test_more_candidates_than_tokens_are_all_tokens(open_llm: Open) -> None:
    (output,) = search(open_llm(max_logprobs=tiny.VOCAB), prompts(1), beam_width=200, max_tokens=2)
    assert len(output.sequences) == 200
    assert {len(entry) for s in output.sequences for entry in s.logprobs} == {tiny.VOCAB}


def test_a_search_without_a_tokenizer_has_no_text(open_llm: Open) -> None:
    (output,) = search(open_llm(skip_tokenizer_init=True), prompts(1))
    assert {s.text for s in output.sequences} == {""}


class CountingBar:
    def __init__(self, **options: Any) -> None:
        self.total, self.done, self.closed = options["total"], 0, False

    def update(self, count: int) -> None:
        self.done += count

    def close(self) -> None:
        self.closed = True


def test_the_bar_counts_rounds(open_llm: Open) -> None:
    bars: list[CountingBar] = []

    def make(**options: Any) -> CountingBar:
        bars.append(CountingBar(**options))
        return bars[-1]

    llm = open_llm()
    llm.beam_search(prompts(), BeamSearchParams(2, STEPS, ignore_eos=True), use_tqdm=make)
    assert [(bar.total, bar.done, bar.closed) for bar in bars] == [(STEPS, STEPS, True)]


@pytest.mark.parametrize(
    ("settings", "params", "error", "says"),
    [
        ({}, {"beam_width": 11}, ValueError, "beam_width is 11.*22 logprobs.*max_logprobs=22.*lower beam_w"),
        ({"logprobs_mode": "raw_logits"}, {}, ValueError, "'raw_logits': open .*'raw_logprobs'"),
        ({}, {"beam_width": 0}, ValueError, "beam_width is 0"),
        ({}, {"max_tokens": 0}, ValueError, "max_tokens is 0"),
        ({}, {"length_penalty": 1e9}, ValueError, "length_penalty is 1e.09: use -50 to 50"),
        ({}, {"ignore_eos": "no"}, TypeError, "ignore_eos is 'no': use True or False"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_remedy(
    open_llm: Open, settings: dict, params: dict, error: type[Exception], says: str
) -> None:
    llm = open_llm(**settings)
    with pytest.raises(error, match=says):
        search(llm, prompts(), **params)


def test_bad_arguments_are_named_before_any_work(open_llm: Open) -> None:
    llm = open_llm(max_model_len=64)
    good = BeamSearchParams(2, 3)
    for given, options, error, says in [
        (["a", ""], {}, ValueError, "prompt 1 of 2: the prompt is empty"),
        ([[3], [999]], {"concurrency_limit": 1}, ValueError, "prompt 1 of 2: token id 999"),
        ([[3] * 64], {}, ValueError, "64 tokens and max_model_len is 64"),
        (["a"], {"params": SamplingParams()}, TypeError, r"use BeamSearchParams\(beam_width"),
        (["a"], {"concurrency_limit": 0}, ValueError, "concurrency_limit is 0: use 1 or more"),
        (
            ["a"],
            {"lora_request": LoRARequest("a", 1, "/a")},
            ValueError,
            "open the LLM with enable_lora=True",
        ),
        (["a", "b"], {"lora_request": [None]}, ValueError, "lora_request has 1 entries for 2 prompts"),
    ]:
        with pytest.raises(error, match=says):
            llm.beam_search(given, **{"params": good} | options)
    changed = BeamSearchParams(2, 3)
    changed.beam_width = -1
    with pytest.raises(ValueError, match="beam_width is -1"):
        llm.beam_search(["a"], changed)
    assert len(llm.trace.requests) == 0
