"""Logits processors: what they see, what they change, where they stand, and whom their failures end."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.llm import tiny
from tests.llm.conftest import Models, Open, check_idle
from tests.llm.processors import (
    Banning,
    Bias,
    Failing,
    Identity,
    InvariantIdentity,
    MinP,
    NewBias,
    Recorder,
    take_recorder,
)
from workbench import LLM, RequestOutput, SamplingParams
from workbench.logits_processors import AdapterLogitsProcessor
from workbench.sim.replay import replay
from workbench.trace import Trace

COUNT = 8

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.0},
    {"temperature": 1.1, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.4},
    {"temperature": 1.0, "allowed_token_ids": list(range(5, 60)), "min_tokens": 4},
    {"temperature": 0.0, "repetition_penalty": 1.5},
]
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


def requests(**more: Any) -> tuple[list[list[int]], list[SamplingParams]]:
    dice = random.Random(17)
    prompts = [[dice.randrange(3, tiny.VOCAB) for _ in range(6 + 5 * i)] for i in range(len(OPTIONS))]
    common = {"max_tokens": COUNT, "ignore_eos": True} | more
    return prompts, [SamplingParams(**options, seed=50 + i, **common) for i, options in enumerate(OPTIONS)]


def generate(llm: LLM, **more: Any) -> list[RequestOutput]:
    return llm.generate(*requests(**more), use_tqdm=False)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


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


# --- how they are found -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [[Bias], ["tests.llm.processors:Bias"], (Bias,)], ids=["class", "string", "tuple"]
)
def test_processors_are_given_as_classes_or_by_name(open_llm: Open, given: Any) -> None:
    llm = open_llm(logits_processors=given)
    assert llm.config.logits_processors == ("Bias",)
    params = SamplingParams(temperature=0, max_tokens=2, extra_args={"bias": {77: 100.0}})
    assert tokens_of(llm.generate(["a"], params, use_tqdm=False)) == [[77, 77]]


PLUGIN = """
class Always:
    def __init__(self, config, device):
        assert config.block_size == 16 and device.type == "cpu"
    def apply(self, logits):
        logits[:, 77] = 100.0
        return logits
    def is_argmax_invariant(self):
        return False
    def update_state(self, batch_update):
        pass
"""


def install(folder: Path, target: str) -> None:
    """An installed distribution with an entry point, as pip leaves it."""
    (folder / "always_plugin.py").write_text(PLUGIN)
    info = folder / "always_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: always-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[workbench.logits_processors]\nalways = {target}\n")


def test_installed_plugins_are_found(open_llm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "always_plugin:Always")
    assert open_llm().config.logits_processors == ()
    monkeypatch.syspath_prepend(tmp_path)
    llm = open_llm(logits_processors=[Identity])
    assert llm.config.logits_processors == ("Always", "Identity")
    params = SamplingParams(temperature=0, max_tokens=2)
    assert tokens_of(llm.generate(["a"], params, use_tqdm=False)) == [[77, 77]]


def test_a_plugin_that_is_not_there_says_so(
    open_llm: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "always_plugin:Gone")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match=r"'always_plugin:Gone' cannot be imported .*Gone"):
        open_llm()


class Lacking:
    def __init__(self, config: Any, device: Any) -> None: ...
    def apply(self, logits: Tensor) -> Tensor:
        return logits


class Unsure(Identity):
    invariant = None


class Unmakeable(Identity):
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (Bias, TypeError, "use a list of classes or 'module:Class' strings"),
        ("tests.llm.processors:Bias", TypeError, "use a list of classes"),
        ([Lacking], TypeError, "Lacking lacks is_argmax_invariant, update_state: use a class with"),
        ([lambda logits: logits], TypeError, "logits_processors holds .*lambda.*use a class with"),
        (["tests.llm.processors.Bias"], ValueError, "'tests.llm.processors.Bias': use 'module:Class'"),
        (["tests.llm.processors:Bais"], ValueError, "there is no 'Bais' in"),
        (["tests.llm.nowhere:Bias"], RuntimeError, "'tests.llm.nowhere:Bias' cannot be imported .*nowhere"),
        ([Unsure], TypeError, r"is_argmax_invariant\(\) is None: use True or False"),
        ([Unmakeable], RuntimeError, "Unmakeable cannot be made .*positional.*use a class with __init__"),
    ],
)
def test_what_is_no_processor_is_refused_with_the_remedy(
    open_llm: Open, given: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        open_llm(logits_processors=given)


def test_params_that_a_processor_refuses_are_named_before_any_work(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Bias, AdapterLogitsProcessor])
    good = SamplingParams(extra_args={"bias": {}})
    for args, says in [({"bias": 3}, "bias is a dict"), ({"logits_processor": 5}, "is 5: use f")]:
        with pytest.raises(ValueError, match=f"prompt 1 of 2: .*{says}"):
            llm.generate(["a", "b"], [good, SamplingParams(extra_args=args)], use_tqdm=False)
    assert len(llm.trace.requests) == 0


def test_arguments_for_processors_are_refused_where_there_are_none(open_llm: Open) -> None:
    with pytest.raises(ValueError, match=r"extra_args is for .*LLM\(logits_processors"):
        open_llm().generate(["a"], SamplingParams(extra_args={"bias": {}}), use_tqdm=False)


# --- whom their failures end --------------------------------------------------------------------------


def mixed(how: str) -> tuple[list[list[int]], list[SamplingParams]]:
    prompts, _ = requests()
    args = [{"fail": how} if i == 2 else None for i in range(len(prompts))]
    common: dict[str, Any] = {"temperature": 0, "max_tokens": COUNT, "ignore_eos": True}
    return prompts, [SamplingParams(**common, extra_args=a) for a in args]


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("how", ["nan", "empty"])
def test_a_spoilt_row_ends_its_own_request_and_no_other(
    models: Models, open_llm: Open, how: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped)
    prompts, params = mixed(how)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    check_idle(llm)
    for i, output in enumerate(outputs):
        child, expected = output.outputs[0], models.greedy(prompts[i], COUNT)
        if i == 2:
            assert child.finish_reason == "error"
            assert child.stop_reason.startswith("logits processor Failing: it left NaN")
            assert list(child.token_ids) == expected[:2], "what came before stays, and nothing is added"
        else:
            assert child.finish_reason == "length"
            assert list(child.token_ids)[: len(expected)] == expected


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "KeyError: 'injected'"),
        ("update", "update_state: KeyError: 'injected'"),
        ("shape", r"apply returned \[\d, 319\] for logits \[\d, 320\]"),
        ("nothing", "apply returned NoneType"),
    ],
)
def test_a_failure_of_nobody_in_particular_ends_the_steps_requests_and_not_the_engine(
    models: Models, open_llm: Open, how: str, says: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped, max_num_seqs=4)
    prompts, params = mixed(how)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    check_idle(llm)
    ends = [output.outputs[0].finish_reason for output in outputs]
    assert ends == ["error"] * 4 + ["length"] * 2, "those that were in the step, and those that came later"
    for output in outputs[:4]:
        assert output.outputs[0].stop_reason.startswith("logits processor Failing: ")
    assert re.search(says, outputs[2].outputs[0].stop_reason)
    (again,) = llm.generate(prompts[:1], params[0], use_tqdm=False)
    expected = models.greedy(prompts[0], COUNT)
    assert list(again.outputs[0].token_ids)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("process", "says"),
    [
        (lambda output_ids, logits: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda output_ids, logits: logits[1:], r"it returned a Tensor \[319\] instead of logits \[320\]"),
        (lambda output_ids, logits: None, r"it returned a NoneType instead of logits \[320\]"),
        (lambda output_ids, logits: logits * float("nan"), "it left NaN"),
    ],
    ids=["raises", "shape", "nothing", "nan"],
)
def test_a_callable_that_fails_ends_its_own_request(
    models: Models, open_llm: Open, process: Any, says: str
) -> None:
    llm = open_llm(logits_processors=[AdapterLogitsProcessor])
    prompts, params = mixed("nan")
    params[2].extra_args = {"logits_processor": process}
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == [
        "error" if i == 2 else "length" for i in range(len(prompts))
    ]
    assert re.search(f"^logits processor AdapterLogitsProcessor: {says}", outputs[2].outputs[0].stop_reason)
    for prompt, output in zip(prompts, outputs, strict=True):
        expected = models.greedy(prompt, COUNT)
        found = list(output.outputs[0].token_ids)
        assert found[: len(expected)] == expected[: len(found)]


def test_a_callable_that_cannot_be_made_ends_its_own_request(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Banning])
    prompts, params = mixed("nan")
    params[2].extra_args = {"ban": "nothing"}
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length"] * 2 + ["error"] + [
        "length"
    ] * 3
    assert outputs[2].outputs[0].stop_reason == "logits processor Banning: KeyError: 'injected'"


def test_an_invariant_processor_that_fails_leaves_greedy_requests_alone(open_llm: Open) -> None:
    class Late(InvariantIdentity):
        def apply(self, logits: Tensor) -> Tensor:
            return logits * float("nan")

    llm = open_llm(logits_processors=[Late])
    prompts, params = requests()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == [
        "length" if own.is_greedy else "error" for own in params
    ]


def test_a_failure_is_told_when_stepping_and_streaming(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Failing])
    prompts, params = mixed("nan")
    llm.add_request(prompts[2], params[2], request_id="mine")
    steps = [llm.step() for _ in range(3)]
    assert [step.finished for step in steps] == [[], [], ["mine"]]
    assert steps[-1].outputs[0].outputs[0].finish_reason == "error"
    assert not llm.has_unfinished_requests()
    told = list(llm.stream(prompts[2], params[2]))
    assert [len(output.outputs[0].token_ids) for output in told] == [1, 1, 0]
    assert told[-1].outputs[0].finish_reason == "error"


def test_the_trace_counts_a_dropped_token_as_overshoot(open_llm: Open) -> None:
    llm = open_llm(logits_processors=[Failing])
    prompts, params = mixed("nan")
    with llm.trace.record() as trace:
        llm.generate(prompts, params, use_tqdm=False)
    assert trace.requests["finish_reason"].tolist().count("error") == 1
    assert trace.steps["overshoot"].sum() == 1


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("how", ["nan", "raise"])
def test_a_recording_of_failures_is_read_back_and_plays_again(
    open_llm: Open, tmp_path: Path, how: str, overlapped: bool
) -> None:
    llm = open_llm(logits_processors=[Failing], async_scheduling=overlapped, max_num_seqs=4)
    with llm.trace.record(tmp_path / "run") as trace:
        llm.generate(*mixed(how), use_tqdm=False)
    again = Trace.load(tmp_path / "run")
    told = again.requests["stop_reason"].dropna().str.contains("logits processor Failing")
    assert told.tolist() == [True] * (4 if how == "raise" else 1)
    for other in (again, replay(trace)):
        assert not Trace.diff(trace, other)
        for name in ("requests", "steps", "tokens"):
            pd.testing.assert_frame_equal(
                getattr(trace, name)[DECIDED[name]], getattr(other, name)[DECIDED[name]]
            )


DECIDED = {
    "requests": ["request_id", "output_tokens", "overshoot_tokens", "finish_reason", "stop_reason"],
    "steps": ["step", "scheduled", "overshoot", "running", "waiting", "blocks_held"],
    "tokens": ["request_id", "position", "token_id"],
}
