"""While a grammar is compiled: others go on, the one that waits can be ended, and its tokens are the same."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.llm.asking import prompts
from tests.llm.conftest import Open, check_idle
from workbench import LLM, SamplingParams, StructuredOutputsParams
from workbench.structured.grammar import CompiledGrammar, Spec

SECONDS = 20  # a wait that ends only where something is wrong
PATTERN = "([a-c]{2}|[0-9]){4,6}"
FREE = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


def constrained(pattern: str = PATTERN, **options: Any) -> SamplingParams:
    constraint = StructuredOutputsParams(regex=pattern)
    return SamplingParams(**{"seed": 3, "max_tokens": 12, "structured_outputs": constraint} | options)


class Gate:
    """The thread that compiles stands before it until it is opened."""

    def __init__(self, llm: LLM) -> None:
        grammars = llm._parts.grammars
        self._compile: Callable[[Spec], CompiledGrammar] = grammars._compile
        self._open = threading.Event()
        self.began = threading.Event()
        self.failure: ValueError | None = None
        grammars._compile = self._stand

    def _stand(self, spec: Spec) -> CompiledGrammar:
        self.began.set()
        assert self._open.wait(SECONDS)
        if self.failure is not None:
            raise self.failure
        return self._compile(spec)

    def open(self) -> None:
        self._open.set()

    def open_behind(self, llm: LLM) -> None:
        """As soon as a request has been taken, whatever it waits for; a failure before that refuses it."""

        def watch() -> None:
            deadline = time.monotonic() + SECONDS
            while not llm.has_unfinished_requests() and time.monotonic() < deadline:
                time.sleep(0.002)
            self.open()

        threading.Thread(target=watch).start()

    def open_in(self, seconds: float) -> None:
        threading.Timer(seconds, self.open).start()


Gated = Callable[..., tuple[LLM, Gate]]


@pytest.fixture
def gated(open_llm: Open) -> Iterator[Gated]:
    gates: list[Gate] = []

    def opened(**settings: Any) -> tuple[LLM, Gate]:
        llm = open_llm(**settings)
        gates.append(Gate(llm))
        return llm, gates[-1]

    yield opened
    for gate in gates:
        gate.open()
    deadline = time.monotonic() + SECONDS
    while any(thread.name == "workbench-grammars" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread stays although nothing is to be compiled"
        time.sleep(0.002)


def alone(open_llm: Open, params: SamplingParams, prompt: Any = "the bird") -> list[list[int]]:
    with open_llm() as llm:
        (output,) = llm.generate(prompt, params, use_tqdm=False)
        return [list(one.token_ids) for one in output.outputs]


@pytest.mark.parametrize("overlapped", [False, True])
def test_others_run_to_their_end_while_one_waits(open_llm: Open, gated: Gated, overlapped: bool) -> None:
    expected = alone(open_llm, constrained())
    llm, gate = gated(async_scheduling=overlapped)
    found: list[Any] = []
    waiter = threading.Thread(
        target=lambda: found.extend(llm.generate("the bird", constrained(), use_tqdm=False))
    )
    waiter.start()
    assert gate.began.wait(SECONDS)
    for _ in range(3):
        outputs = llm.generate(prompts(3), FREE, use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [12] * 3
    assert not found
    gate.open()
    waiter.join(SECONDS)
    assert [list(found[0].outputs[0].token_ids)] == expected


def test_all_of_one_call_have_the_tokens_they_have_alone(open_llm: Open, gated: Gated) -> None:
    expected = [alone(open_llm, constrained(n=3)), alone(open_llm, FREE)]
    llm, gate = gated(num_gpu_blocks_override=10, block_size=8, max_model_len=80)
    gate.open_in(0.05)
    outputs = llm.generate(["the bird"] * 2, [constrained(n=3), FREE], use_tqdm=False)
    assert [[list(one.token_ids) for one in output.outputs] for output in outputs] == expected


def test_nobody_spins_while_all_wait(gated: Gated) -> None:
    llm, gate = gated()
    planned = []
    plan = llm._engine.scheduler.plan
    llm._engine.scheduler.plan = lambda: planned.append(1) or plan()
    begin = time.perf_counter()
    gate.open_in(0.3)
    llm.generate("the bird", constrained(max_tokens=1), use_tqdm=False)
    seconds = time.perf_counter() - begin
    assert len(planned) < 15 + 50 * seconds, "the loop looks some fifty times a second, no more"


def test_by_hand_steps_go_on_with_the_others_and_then_wait(open_llm: Open, gated: Gated) -> None:
    expected = alone(open_llm, constrained())
    llm, gate = gated()
    llm.add_request("the bird", constrained(), request_id="waits")
    llm.add_request("the bird", FREE, request_id="runs")
    steps = [llm.step() for _ in range(12)]
    assert all(list(step.num_scheduled_tokens) == ["runs"] for step in steps)
    assert steps[-1].finished == ["runs"]
    assert [(each.request_id, each.ready) for each in llm.scheduler.waiting] == [("waits", False)]
    assert llm.scheduler.preview().index == -1
    gate.open_in(0.05)
    assert list(llm.step().num_scheduled_tokens) == ["waits"], "it waits where nothing else is to do"
    while llm.has_unfinished_requests():
        last = llm.step()
    assert [list(last.outputs[0].outputs[0].token_ids)] == expected


def test_streams_begin_when_the_grammar_is_there(open_llm: Open, gated: Gated) -> None:
    expected = alone(open_llm, constrained())
    llm, gate = gated()
    gate.open_in(0.05)
    streamed = [token for out in llm.stream("the bird", constrained()) for token in out.outputs[0].token_ids]
    assert [streamed] == expected


def test_async_streams_of_others_end_before(open_llm: Open, gated: Gated) -> None:
    expected = alone(open_llm, constrained())
    llm, gate = gated()
    order: list[str] = []

    async def one(name: str, params: SamplingParams) -> list[int]:
        streamed = [out.outputs[0].token_ids async for out in llm.astream("the bird", params)]
        order.append(name)
        if name == "free":
            gate.open()
        return [token for token_ids in streamed for token in token_ids]

    async def both() -> list[list[int]]:
        return await asyncio.gather(one("waits", constrained()), one("free", FREE))

    assert asyncio.run(both())[0] == expected[0]
    assert order == ["free", "waits"]


def test_an_async_stream_that_is_given_up_leaves_nothing(gated: Gated) -> None:
    llm, _ = gated()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(llm.astream("the bird", constrained())), 0.05)

    asyncio.run(give_up())
    deadline = time.monotonic() + SECONDS
    while llm._engine.scheduler.has_work and time.monotonic() < deadline:
        time.sleep(0.002)
    check_idle(llm)


def test_an_abort_ends_the_call_that_waits(gated: Gated) -> None:
    llm, gate = gated()
    found: list[Any] = []
    waiter = threading.Thread(
        target=lambda: found.extend(llm.generate("the bird", constrained(n=2), use_tqdm=False))
    )
    waiter.start()
    assert gate.began.wait(SECONDS)
    while not llm.has_unfinished_requests():
        time.sleep(0.002)
    llm.abort("0")
    waiter.join(SECONDS)
    assert [one.finish_reason for one in found[0].outputs] == ["abort", "abort"]
    assert found[0].outputs[0].token_ids == []


def test_closing_while_a_grammar_is_compiled_ends_the_call(gated: Gated) -> None:
    llm, gate = gated()
    found: list[Any] = []
    waiter = threading.Thread(
        target=lambda: found.extend(llm.generate("the bird", constrained(), use_tqdm=False))
    )
    waiter.start()
    assert gate.began.wait(SECONDS)
    while not llm.has_unfinished_requests():
        time.sleep(0.002)
    llm.close()
    waiter.join(SECONDS)
    assert found[0].outputs[0].finish_reason == "abort"
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("the bird", constrained(), use_tqdm=False)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


WAYS: dict[str, Callable[[LLM], object]] = {
    "generate": lambda llm: llm.generate("the bird", constrained(), use_tqdm=False),
    "stream": lambda llm: next(llm.stream("the bird", constrained())),
    "step": lambda llm: llm.step(),
}


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_is_heard_while_all_wait(gated: Gated, way: str) -> None:
    llm, gate = gated()
    if way == "step":
        llm.add_request("the bird", constrained(), request_id="queued")

    def interrupt() -> None:
        assert gate.began.wait(SECONDS)
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        WAYS[way](llm)
    assert llm.has_unfinished_requests() is (way == "step"), "what was queued by hand stays"
    llm.abort("queued")
    gate.open()
    (output,) = llm.generate("the bird", constrained(), use_tqdm=False)
    assert output.outputs[0].token_ids


def test_a_grammar_that_fails_late_ends_its_own_request_with_the_reason(gated: Gated) -> None:
    llm, gate = gated()
    gate.failure = ValueError("structured_outputs: too many states")
    gate.open_behind(llm)
    with llm.trace.record() as trace:
        outputs = llm.generate(["the bird"] * 2, [constrained(n=2), FREE], use_tqdm=False)
    for one in outputs[0].outputs:
        assert (one.finish_reason, one.stop_reason) == ("error", "structured_outputs: too many states")
        assert one.token_ids == []
    assert outputs[1].outputs[0].finish_reason == "length"
    assert trace.requests["finish_reason"].tolist() == ["error", "error", "length"]
    with pytest.raises(ValueError, match="too many states"):
        llm.generate("the bird", constrained(), use_tqdm=False)


def test_by_hand_a_late_failure_is_told_in_a_step(gated: Gated) -> None:
    llm, gate = gated()
    gate.failure = ValueError("too many states")
    llm.add_request("the bird", constrained(), request_id="fails")
    gate.open()  # not before: what fails while it is asked for is refused
    step = llm.step()
    assert (step.index, step.finished) == (-1, ["fails"])
    assert "fails" in repr(step)
    assert step.outputs[0].outputs[0].stop_reason == "too many states"
    assert not llm.has_unfinished_requests()


def test_a_refusal_comes_before_anything_is_queued(gated: Gated) -> None:
    llm, _ = gated()
    with pytest.raises(ValueError, match="prompt 1 of 2: .*cannot compile the regex"):
        llm.generate(["a", "b"], [constrained(), constrained("(a")], use_tqdm=False)
    assert not llm.has_unfinished_requests()


def test_the_trace_says_how_long_a_request_waited_for_its_grammar(gated: Gated) -> None:
    llm, gate = gated()
    gate.open_in(0.1)
    with llm.trace.record() as trace:
        llm.generate(["the bird"] * 2, [constrained(), FREE], use_tqdm=False)
        llm.generate("the bird", constrained(), use_tqdm=False)
    waited = trace.requests["grammar_s"]
    assert 0.03 < waited[0] <= trace.requests["queue_s"][0]
    assert waited[1:].tolist() == [0, 0], "none was asked for; it was there"
    sums = trace.requests[["prompt_tokens", "cached_tokens", "output_tokens"]].sum()
    followed = len(trace.requests)
    computed = sums["prompt_tokens"] - sums["cached_tokens"] + sums["output_tokens"] - followed
    assert trace.steps["scheduled"].sum() == computed
    assert np.isfinite(waited).all()


def test_two_hundred_schemas_at_once(open_llm: Open) -> None:
    llm = open_llm()
    patterns = [f"[ab]{{2}}{number}" for number in range(200)]
    params = [constrained(pattern, max_tokens=8) for pattern in patterns]
    outputs = llm.generate(["the bird"] * 200, params, use_tqdm=False)
    ended = [(o.outputs[0].text, p) for o, p in zip(outputs, patterns, strict=True)]
    assert all(text.endswith(pattern[7:]) and text[0] in "ab" for text, pattern in ended)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
