"""A runner that raises, Ctrl-C, observers and bars that fail: the engine goes on and loses nothing."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.llm import tiny
from tests.llm.conftest import Models, Open, check_idle
from workbench import LLM, RequestOutput, SamplingParams

COUNT = 12


def prompts(count: int = 5) -> list[list[int]]:
    dice = random.Random(21)
    return [[dice.randrange(3, tiny.VOCAB) for _ in range(20 + 9 * i)] for i in range(count)]


def greedy(**options) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": COUNT, "ignore_eos": True} | options)


def assert_right(models: Models, output: RequestOutput, count: int = COUNT) -> None:
    assert output.outputs[0].finish_reason == "length"
    assert len(output.outputs[0].token_ids) == count
    expected = models.greedy(list(output.prompt_token_ids), count)
    assert list(output.outputs[0].token_ids)[: len(expected)] == expected


class Failing:
    """A runner that raises when told to, before or after the real one has worked, and leaves rubbish."""

    def __init__(
        self, llm: LLM, where: str, steps: set[int], error: type[BaseException] = RuntimeError
    ) -> None:
        self._real = llm._engine.runner
        self.where, self.steps, self.error = where, steps, error
        self.failed: list[int] = []
        llm._engine.runner = self

    def launch(self, plan: Any) -> Any:
        if plan.index in self.steps and self.where == "before launch":
            self._fail(plan.index)
        ticket = self._real.launch(plan)
        if plan.index in self.steps and self.where == "after launch":
            self._spoil(plan)
            self._fail(plan.index)
        return ticket, plan

    def collect(self, ticket: Any) -> Any:
        ticket, plan = ticket
        if plan.index in self.steps and self.where == "collect":
            self._spoil(plan)
            self._fail(plan.index)
        return self._real.collect(ticket)

    def reset(self) -> None:
        self._real.reset()

    def _fail(self, index: int) -> None:
        self.failed.append(index)
        raise self.error(f"injected at step {index}")

    def _spoil(self, plan: Any) -> None:
        """What a failed step wrote cannot be trusted: make sure that nobody reads it."""
        store, batch = self._real._store, self._real._batch
        for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True):
            for position in range(start, start + count):
                block = batch._tables[0][row, position // batch.block_size]
                for tensor in store._tensors:
                    tensor[:, :, block, position % batch.block_size] = 77.0


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("where", ["before launch", "after launch", "collect"])
@pytest.mark.parametrize("step", [0, 2, 5, 9])
def test_a_failed_step_ends_its_own_requests_and_nobody_elses(
    models: Models, open_llm: Open, where: str, step: int, overlapped: bool
) -> None:
    llm = open_llm(
        max_num_batched_tokens=32, max_num_seqs=3, block_size=4, async_scheduling=overlapped, max_model_len=80
    )
    runner = Failing(llm, where, {step})
    with llm.trace.record() as trace:
        outputs = llm.generate(prompts(), greedy(), use_tqdm=False)
    check_idle(llm)
    assert runner.failed == [step]
    of_step = set(trace.step_requests.query("step == @step")["request_id"])
    for output in outputs:
        if output.request_id in of_step:
            assert output.outputs[0].finish_reason == "error"
        else:
            assert_right(models, output)
    assert 0 < len(of_step) < len(outputs)
    for output in llm.generate(prompts(), greedy(), use_tqdm=False):  # nothing it wrote is found again
        assert_right(models, output)


@pytest.mark.parametrize("where", ["before launch", "after launch"])
def test_behind_a_failed_launch_nothing_is_launched_before_the_reset(open_llm: Open, where: str) -> None:
    """The runner's batch lacks what the failed plan brought: a step on top of it would write anywhere."""
    llm = open_llm(max_num_batched_tokens=32, max_num_seqs=3, async_scheduling=True)
    runner = Failing(llm, where, {2, 6, 7})
    calls: list[str] = []
    launch, reset = runner.launch, runner.reset

    def launching(plan: Any) -> Any:
        calls.append(f"launch {plan.index}")
        return launch(plan)

    def resetting() -> None:
        calls.append("reset")
        reset()

    runner.launch, runner.reset = launching, resetting
    llm.generate(prompts(8), greedy(), use_tqdm=False)
    for step in runner.failed:
        assert calls[calls.index(f"launch {step}") + 1] == "reset"
    assert runner.failed == [2, 6, 7]


@pytest.mark.parametrize("overlapped", [False, True])
def test_repeated_failures_leave_a_working_engine(models: Models, open_llm: Open, overlapped: bool) -> None:
    llm = open_llm(max_num_batched_tokens=40, max_num_seqs=2, async_scheduling=overlapped)
    runner = Failing(llm, "collect", {0, 1, 9})
    first = llm.generate(prompts(8), greedy(), use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in first} == {"error", "length"}
    runner.steps = set()
    for output in llm.generate(prompts(8), greedy(), use_tqdm=False):
        assert_right(models, output)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_blocks_of_a_failed_step_are_not_found_by_any_group(
    models: Models, open_llm: Open, family: str
) -> None:
    llm = open_llm(family, block_size=4, max_num_batched_tokens=32)
    prompt = prompts()[4]
    Failing(llm, "collect", {1})
    (failed,) = llm.generate([prompt], greedy(), use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error"
    (again,) = llm.generate([prompt], greedy(), use_tqdm=False)
    assert again.num_cached_tokens <= 32, "only what the step before it wrote"
    expected = models.greedy(prompt, COUNT, family)
    assert list(again.outputs[0].token_ids)[: len(expected)] == expected


def test_a_failed_step_is_told_by_hand(models: Models, open_llm: Open) -> None:
    llm = open_llm()
    Failing(llm, "before launch", {1})
    llm.add_request(prompts()[0], greedy(), request_id="a")
    llm.step()
    step = llm.step()
    assert (step.index, step.finished) == (1, ["a"])
    (output,) = step.outputs
    assert (output.finished, output.outputs[0].finish_reason) == (True, "error")
    assert len(output.outputs[0].token_ids) == 1
    assert not llm.has_unfinished_requests()


def test_streams_hear_of_a_failure(open_llm: Open) -> None:
    llm = open_llm()
    Failing(llm, "collect", {3})
    pieces = list(llm.stream(prompts()[0], greedy()))
    assert pieces[-1].outputs[0].finish_reason == "error"
    assert sum(len(piece.outputs[0].token_ids) for piece in pieces) == 3


# --- Ctrl-C -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell that starts a program in the background may have it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted:
    """A runner in whose work Ctrl-C arrives, once, at a moment that no clock decides."""

    def __init__(self, llm: LLM, number: int, where: str = "before launch") -> None:
        """`number`: the launch, or collect, of this runner it is."""
        self._real, self._when = llm._engine.runner, (where, number)
        self._counts = {"launch": 0, "collect": 0}
        self.reset = self._real.reset
        self.times = 0
        llm._engine.runner = self

    def launch(self, plan: Any) -> Any:
        return self._run("launch", self._real.launch, plan)

    def collect(self, ticket: Any) -> Any:
        return self._run("collect", self._real.collect, ticket)

    def _run(self, name: str, work: Callable[[Any], Any], given: Any) -> Any:
        number = self._counts[name]
        self._counts[name] += 1
        self._arrive(f"before {name}", number)
        found = work(given)
        self._arrive(f"after {name}", number)
        return found

    def _arrive(self, where: str, number: int) -> None:
        if (where, number) == self._when:
            self.times += 1
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("overlapped", [False, True])
def test_ctrl_c_ends_the_interrupted_call_and_no_other(
    models: Models, open_llm: Open, overlapped: bool
) -> None:
    llm = open_llm(max_num_seqs=4, async_scheduling=overlapped)
    Interrupted(llm, 6)
    given = prompts()
    name = llm.add_request(given[0], greedy(max_tokens=60))
    with llm.trace.record() as trace, pytest.raises(KeyboardInterrupt):
        llm.generate(given[1:], greedy(max_tokens=100), use_tqdm=False)
    reasons = trace.requests.set_index("request_id")["finish_reason"]
    assert (reasons.drop(name) == "abort").all()
    assert len(reasons) == len(given)
    assert list(llm._requests._open) == [name]
    llm._engine.scheduler.check()
    last: dict[str, RequestOutput] = {}
    while llm.has_unfinished_requests():
        last |= {output.request_id: output for output in llm.step().outputs}
    assert list(last) == [name]
    assert_right(models, last[name], 60)
    check_idle(llm)
    for output in llm.generate(given, greedy(), use_tqdm=False):
        assert_right(models, output)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("where", ["before launch", "after launch", "before collect", "after collect"])
@pytest.mark.parametrize("number", [0, 1, COUNT - 1])
def test_ctrl_c_at_any_moment_of_a_step_by_hand_loses_nothing(
    models: Models, open_llm: Open, where: str, number: int
) -> None:
    llm = open_llm(max_num_seqs=4)
    Interrupted(llm, number, where)
    names = [llm.add_request(prompt, greedy()) for prompt in prompts(3)]
    last: dict[str, RequestOutput] = {}
    interrupts = 0
    while llm.has_unfinished_requests():
        try:
            last |= {output.request_id: output for output in llm.step().outputs}
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1
    for name in names:
        assert_right(models, last[name])


def test_ctrl_c_while_a_stream_waits_ends_the_stream(open_llm: Open) -> None:
    llm = open_llm()
    Interrupted(llm, 8)
    with pytest.raises(KeyboardInterrupt):
        for _ in llm.stream(prompts()[0], greedy(max_tokens=200)):
            pass
    check_idle(llm)


def test_ctrl_c_that_is_ignored_stays_ignored(models: Models, open_llm: Open) -> None:
    """A program that has its own handler for SIGINT hears of it, and the call goes on."""
    llm = open_llm()
    Interrupted(llm, 5)
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        (output,) = llm.generate([prompts()[0]], greedy(max_tokens=40), use_tqdm=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
    assert_right(models, output, 40)


# --- what looks on -----------------------------------------------------------------------------------


class Broken:
    """A progress bar that fails."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        raise OSError("no terminal")

    def update(self, count: int) -> None:
        raise AssertionError("set aside already")

    def close(self) -> None:
        raise AssertionError("set aside already")


def test_a_progress_bar_that_fails_is_set_aside(
    models: Models, open_llm: Open, caplog: pytest.LogCaptureFixture
) -> None:
    llm = open_llm()
    for output in llm.generate(prompts(), greedy(), use_tqdm=Broken):
        assert_right(models, output)
    assert [record.message for record in caplog.records if "set aside" in record.message]


def test_a_progress_bar_is_told_of_every_request(open_llm: Open) -> None:
    made: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.total, self.count, self.closed = options["total"], 0, False
            made.append(self)

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert "tok/s" in text

        def update(self, count: int) -> None:
            self.count += count

        def close(self) -> None:
            self.closed = True

    open_llm().generate(prompts(), greedy(n=2), use_tqdm=Bar)
    assert [(bar.total, bar.count, bar.closed) for bar in made] == [(10, 10, True)]


@pytest.mark.parametrize(
    "nested", ["step", "generate", "stream", "add_request", "reset_prefix_cache", "close"]
)
def test_an_observer_that_drives_the_engine_is_set_aside(
    models: Models, open_llm: Open, nested: str, caplog: pytest.LogCaptureFixture
) -> None:
    llm = open_llm()
    calls: dict[str, Callable[[], object]] = {
        "step": llm.step,
        "generate": lambda: llm.generate([prompts()[0]], greedy(), use_tqdm=False),
        "stream": lambda: list(llm.stream(prompts()[0], greedy())),
        "add_request": lambda: llm.add_request(prompts()[0], greedy()),
        "reset_prefix_cache": llm.reset_prefix_cache,
        "close": llm.close,
    }
    seen: list[object] = []

    def observer(event: object) -> None:
        seen.append(event)
        calls[nested]()

    llm._emit.add(observer)
    (output,) = llm.generate([prompts()[0]], greedy(), use_tqdm=False)
    assert_right(models, output)
    assert len(seen) == 1
    assert any("in the middle of a step" in record.message for record in caplog.records)


def test_observers_change_no_token(models: Models, open_llm: Open) -> None:
    llm = open_llm()
    events: list[object] = []
    llm._emit.add(events.append)
    for output in llm.generate(prompts(), greedy(), use_tqdm=False):
        assert_right(models, output)
    llm._emit.remove(events.append)
    llm._emit.remove(llm.trace.observer)
    assert not llm._emit
    for output in llm.generate(prompts(), greedy(), use_tqdm=False):
        assert_right(models, output)
    assert events
