"""Logits processors: what they see, what they change, and where they stand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from tests.llm.processors import (
    COUNT,
    Banning,
    Bias,
    Identity,
    InvariantIdentity,
    MinP,
    NewBias,
    Recorder,
    generate,
    requests,
    take_recorder,
    tokens_of,
)
from workbench import LLM, RequestOutput, SamplingParams
from workbench.logits_processors import AdapterLogitsProcessor

BIAS = {7: 6.0, 9: -5.0, 31: 4.5}

SETTINGS: dict[str, dict[str, Any]] = {
    "batched": {},
    "chunked": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "overlapped": {"async_scheduling": True, "max_num_batched_tokens": 40, "max_num_seqs": 16},
    "preempted": {"block_size": 4, "num_gpu_blocks_override": 16, "max_model_len": 64},
    "preempted, overlapped": {
        "block_size": 4, "num_gpu_blocks_override": 16, "max_model_len": 64, "async_scheduling": True,
    },
}  # fmt: skip


# --- what they change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_processors_that_change_nothing_change_no_token(open_llm: Open, name: str) -> None:
    plain = tokens_of(generate(open_llm(**SETTINGS[name])))
    processed = open_llm(logits_processors=[Identity, InvariantIdentity], **SETTINGS[name])
    assert tokens_of(generate(processed)) == plain


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", [Bias, NewBias])
def test_a_processor_that_is_a_logit_bias_gives_its_tokens(open_llm: Open, kind: type, name: str) -> None:
    """Beside penalties, allowed ids, cut-offs and greedy rows: it stands where logit_bias does."""
    settings = SETTINGS[name]
    biased = tokens_of(generate(open_llm(**settings), logit_bias=BIAS))
    processed = open_llm(logits_processors=[kind], **settings)
    assert tokens_of(generate(processed, extra_args={"bias": BIAS})) == biased
    assert tokens_of(generate(processed)) == tokens_of(generate(open_llm(**settings))) != biased


def test_a_processor_that_is_a_min_p_gives_its_tokens(open_llm: Open) -> None:
    cut = tokens_of(generate_min_p(open_llm(), min_p=0.3))
    processed = open_llm(logits_processors=[MinP])
    assert tokens_of(generate_min_p(processed, extra_args={"min_p": 0.3})) == cut
    assert tokens_of(generate_min_p(processed)) != cut


def generate_min_p(llm: LLM, **more: Any) -> list[RequestOutput]:
    prompts, _ = requests()
    params = [
        SamplingParams(temperature=0.3 * i, seed=i, max_tokens=COUNT, ignore_eos=True, **more)
        for i in range(len(prompts))
    ]
    return llm.generate(prompts, params, use_tqdm=False)


def test_processed_logprobs_show_what_processors_did(open_llm: Open) -> None:
    raw, processed = (
        open_llm(logits_processors=[Bias], logprobs_mode=mode)
        for mode in ("raw_logprobs", "processed_logprobs")
    )
    shown = []
    for llm in (raw, processed):
        (output,) = llm.generate(
            ["the bird"],
            SamplingParams(temperature=0, max_tokens=1, logprobs=0, extra_args={"bias": {77: 100.0}}),
            use_tqdm=False,
        )
        assert output.outputs[0].token_ids == [77]
        shown.append(output.outputs[0].logprobs[0][77])
    assert shown[0].logprob < -1.0
    assert shown[1].logprob == pytest.approx(0.0, abs=1e-6)
    assert shown[1].rank == 1


def test_processors_apply_in_the_order_given(open_llm: Open) -> None:
    class Halving(Identity):
        def apply(self, logits: Tensor) -> Tensor:
            return logits * 0.001

    params = SamplingParams(temperature=0, max_tokens=1, extra_args={"bias": {77: 40.0}})
    last, first = (
        open_llm(logits_processors=kinds).generate(["a"], params, use_tqdm=False)
        for kinds in ([Halving, Bias], [Bias, Halving])
    )
    assert tokens_of(last) == tokens_of(first) == [[77]]
    params.extra_args = {"bias": {77: 0.5}}
    last, first = (
        open_llm(logits_processors=kinds).generate(["a"], params, use_tqdm=False)
        for kinds in ([Halving, Bias], [Bias, Halving])
    )
    assert tokens_of(last) == [[77]] != tokens_of(first)


# --- what they see ------------------------------------------------------------------------------------


class Looking(Identity):
    """Keeps the logits it saw, for each engine that it serves."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.seen: list[Tensor] = []
        type(self).last = self

    def apply(self, logits: Tensor) -> Tensor:
        self.seen.append(logits.clone())
        return logits


class LookingLate(Looking):
    invariant = True


def test_processors_see_allowed_ids_and_bias_and_the_late_ones_penalties_and_temperature(
    models: Models, open_llm: Open
) -> None:
    llm = open_llm(logits_processors=[Looking, LookingLate])
    prompt, allowed = [5, 6, 5, 8], [5, 6, 9, 12]
    params = SamplingParams(
        temperature=0.5, seed=1, max_tokens=1, allowed_token_ids=allowed, logit_bias={9: 2.0},
        repetition_penalty=1.5,
    )  # fmt: skip
    llm.generate([prompt], params, use_tqdm=False)
    raw = tiny.logits(models.oracle(), prompt)[-1].double()
    expected = torch.full_like(raw, float("-inf"))
    expected[allowed] = raw[allowed]
    expected[9] += 2.0
    torch.testing.assert_close(Looking.last.seen[0][0].double(), expected, rtol=0, atol=1e-4)
    for token in {5, 6}:  # of the prompt
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    torch.testing.assert_close(LookingLate.last.seen[0][0].double(), expected / 0.5, rtol=0, atol=1e-3)


def test_the_logits_are_float32_copies(open_llm: Open) -> None:
    class Spoiling(Identity):
        def apply(self, logits: Tensor) -> Tensor:
            assert logits.dtype == torch.float32
            return logits.fill_(0.0).index_fill_(1, torch.tensor([77]), 1.0)

    params = SamplingParams(temperature=0, max_tokens=3, logprobs=0)
    for dtype in ("float32", "bfloat16"):
        (output,) = open_llm(logits_processors=[Spoiling], dtype=dtype).generate(
            ["a"], params, use_tqdm=False
        )
        assert output.outputs[0].token_ids == [77] * 3
        assert {entry[77].logprob for entry in output.outputs[0].logprobs} != {-1.0}, (
            "raw ones are the model's"
        )
        assert output.outputs[0].cumulative_logprob < -3.0


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_describe_the_real_batch(open_llm: Open, name: str) -> None:
    """Arrivals, ends, aborts and preemptions: each row's request, tokens and logits belong together."""
    llm = open_llm(logits_processors=[Recorder], **SETTINGS[name])
    recorder, dice = take_recorder(), random.Random(3)
    prompts = [[dice.randrange(3, tiny.VOCAB) for _ in range(dice.randrange(3, 30))] for _ in range(14)]
    ended: dict[str, RequestOutput] = {}
    waiting, step = list(range(14)), 0
    while waiting or llm.has_unfinished_requests():
        for _ in range(dice.randrange(3) if waiting else 0):
            number = str(waiting.pop(0)) if waiting else "0"
            params = SamplingParams(
                temperature=0, max_tokens=dice.randrange(1, 12), ignore_eos=True, extra_args={"name": number}
            )
            if number not in ended and number not in llm._requests._open:
                llm.add_request(prompts[int(number)], params, request_id=number)
        if step % 5 == 4 and llm._requests._open:
            llm.abort(dice.choice(list(llm._requests._open)))
        for output in llm.step().outputs:
            ended[output.request_id] = output
        step += 1
    assert len(ended) == 14
    assert {output.outputs[0].finish_reason for output in ended.values()} == {"length", "abort"}
    if "num_gpu_blocks_override" in SETTINGS[name]:
        assert sum(output.metrics.num_preemptions for output in ended.values()) > 0
    told: dict[str, list[int]] = {number: [] for number in ended}
    for seen in (seen for rows in recorder.steps for seen in rows):
        assert seen.prompt == prompts[int(seen.name)]
        assert seen.output == told[seen.name], "the tokens so far, and no others"
        told[seen.name].append(seen.likeliest)
    for number, output in ended.items():
        assert list(output.outputs[0].token_ids) == told[number][: len(output.outputs[0].token_ids)]
    assert None in recorder.updates, "a step like the one before brings no update"
    changes = [update for update in recorder.updates if update is not None]
    assert any(update.removed for update in changes)
    assert any(update.moved for update in changes)
    assert all(not {*update.removed} & {added.index for added in update.added} for update in changes)


@pytest.mark.parametrize("name", SETTINGS)
def test_updates_are_right_in_whole_calls_too(open_llm: Open, name: str) -> None:
    """As `generate` drives them, overlapped where the settings say so."""
    llm = open_llm(logits_processors=[Recorder], **SETTINGS[name])
    recorder = take_recorder()
    prompts, _ = requests()
    params = [
        SamplingParams(temperature=0, max_tokens=3 + i, ignore_eos=True, extra_args={"name": str(i)})
        for i in range(len(prompts))
    ]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    for seen in (seen for rows in recorder.steps for seen in rows):
        final = list(outputs[int(seen.name)].outputs[0].token_ids)
        assert seen.prompt == prompts[int(seen.name)]
        assert seen.output == final[: len(seen.output)]
        assert len(seen.output) == len(final) or final[len(seen.output)] == seen.likeliest


# --- one callable a request ---------------------------------------------------------------------------


def test_a_request_may_bring_a_callable_of_its_own(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[AdapterLogitsProcessor])

    def only(token: int) -> Any:
        return lambda output_ids, logits: torch.full_like(logits, -50.0).index_fill_(
            0, torch.tensor([token + len(output_ids)]), 1.0
        )

    def repeat_prompt(prompt_ids: list[int], output_ids: list[int], logits: Tensor) -> Tensor:
        return torch.full_like(logits, -50.0).index_fill_(
            0, torch.tensor([prompt_ids[len(output_ids) % len(prompt_ids)]]), 1.0
        )

    args = [{"logits_processor": only(20)}, None, {"logits_processor": repeat_prompt}]
    params = [SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, extra_args=a) for a in args]
    prompts = requests()[0][:3]
    outputs = tokens_of(llm.generate(prompts, params, use_tqdm=False))
    assert outputs[0] == [20, 21, 22, 23, 24]
    assert outputs[2] == prompts[2][:5]
    (alone,) = llm.generate(prompts[1:2], params[1], use_tqdm=False)
    assert tokens_of([alone])[0] == outputs[1]


def test_an_adapter_may_make_its_callables_of_other_arguments(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Banning])
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    (free,) = tokens_of(llm.generate(["a"], params, use_tqdm=False))
    params.extra_args = {"ban": free[0]}
    (banned,) = tokens_of(llm.generate(["a"], params, use_tqdm=False))
    assert banned != free
