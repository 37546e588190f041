"""A device that fails for good ends the engine: the step is named, nobody waits for ever, close() works."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.llm.asking import greedy, prompts
from tests.llm.conftest import Open
from workbench import LLM, RequestOutput
from workbench.errors import DeviceLost
from workbench.runtime.device import naming_faults


class Dying:
    """A runner whose device fails at a step; asked for anything after that, it says so."""

    def __init__(self, llm: LLM, at: int, where: str) -> None:
        self._real, self._at, self._where = llm._engine.runner, at, where
        self.calls = 0
        llm._engine.runner = self

    def launch(self, plan: Any) -> Any:
        self._use()
        if plan.index == self._at and self._where == "launch":
            self._die()
        return self._real.launch(plan), plan.index

    def collect(self, ticket: Any) -> Any:
        self._use()
        if ticket[1] == self._at and self._where == "collect":
            self._die()
        return self._real.collect(ticket[0])

    def reset(self) -> None:
        self._use()
        self._real.reset()

    def _use(self) -> None:
        self.calls += 1

    def _die(self) -> None:
        raise DeviceLost("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize("where", ["launch", "collect"])
@pytest.mark.parametrize("overlapped", [False, True])
def test_everybody_ends_and_the_step_is_named(open_llm: Open, where: str, overlapped: bool) -> None:
    llm = open_llm(async_scheduling=overlapped, max_num_seqs=2)  # some of them wait
    runner = Dying(llm, 4, where)
    outputs = llm.generate(prompts(), greedy(), use_tqdm=False)
    assert {output.outputs[0].finish_reason for output in outputs} == {"error"}
    calls = runner.calls
    for ask in (lambda: llm.generate(prompts()[0], greedy(), use_tqdm=False), llm.step):
        with pytest.raises(RuntimeError, match=r"step 4 .*illegal memory access.*close\(\)"):
            ask()
    llm.close()
    assert runner.calls == calls, "a device that is gone was asked again"
    assert llm.trace.steps["status"].iloc[-1] == "failed"


def test_those_who_wait_in_other_threads_hear_of_it(open_llm: Open) -> None:
    llm = open_llm()
    Dying(llm, 6, "collect")
    found: dict[int, RequestOutput] = {}

    def ask(number: int) -> None:
        found[number] = llm.generate([prompts()[number]], greedy(), use_tqdm=False)[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads), "somebody still waits"
    assert "error" in {output.outputs[0].finish_reason for output in found.values()}
    llm.close()


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling ...",
    ],
)
def test_faults_of_a_device_are_told_from_other_errors(message: str) -> None:
    @naming_faults
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(DeviceLost, match=r"^[^\n]+$"):
        fail(RuntimeError(message))
    for other in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("shapes differ"),
        ValueError("x"),
    ):
        with pytest.raises(type(other)) as caught:
            fail(other)
        assert not isinstance(caught.value, DeviceLost)
