"""The stepper: what it shows is what comes, stepping gives generate's tokens, and nobody is in the way."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.trace.house import build
from workbench import LLM, SamplingParams
from workbench.engine.preview import Preview
from workbench.trace.pictures.step import MOST_PIECES, draw, recorded
from workbench.widgets import Requests, Stepper, TokenBudget, linked

PROMPTS = [f"Write a story about fox {'very ' * (5 * k)}number {k}.\n\n" for k in range(6)]
PARAMS = SamplingParams(temperature=0.8, seed=4, max_tokens=24, ignore_eos=True)
Open = Callable[..., LLM]


@pytest.fixture
def open_llm() -> Iterator[Open]:
    opened: list[LLM] = []

    def open_one(**settings: Any) -> LLM:
        scarce = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "max_model_len": 128}
        opened.append(LLM("zoo/wren-1m", **(scarce | {"num_gpu_blocks_override": 9} | settings)))
        return opened[-1]

    yield open_one
    for llm in opened:
        llm.close()


def queue(llm: LLM) -> LLM:
    for number, prompt in enumerate(PROMPTS):
        llm.add_request(prompt, PARAMS, request_id=f"r{number}")
    return llm


def place(widget: Stepper) -> str:
    return str(widget._place.value)


def tokens(stepper: Stepper) -> list[list[int]]:
    return [list(stepper.outputs[f"r{number}"].outputs[0].token_ids) for number in range(len(PROMPTS))]


def test_stepping_and_editing_give_the_tokens_of_generate(open_llm: Open) -> None:
    expected = [list(o.outputs[0].token_ids) for o in open_llm().generate(PROMPTS, PARAMS, use_tqdm=False)]
    llm = queue(open_llm())
    stepper = Stepper(llm)
    stepper._pick.value = "first:r5"
    stepper.step()
    stepper._budget.value = 7
    stepper._pick.value = "down:r1"
    stepper.run_until("preemption")
    assert llm.trace.steps.preempted.iloc[-1] > 0
    stepper._budget.value = 32
    stepper.run_until("finish")
    stepper.run_until("end")
    assert llm.trace.steps.preempted.sum() > 0
    assert llm.trace.requests.sort_values("scheduled_s").request_id.iloc[0] == "r5"
    assert set(llm.trace.steps.budget) == {7, 32}
    assert tokens(stepper) == expected
    assert "nothing to do" in place(stepper)


def test_every_step_is_the_one_that_was_shown_and_the_trace_shows_it_again(open_llm: Open) -> None:
    llm = queue(open_llm())
    stepper = Stepper(llm)
    seen: list[Preview] = []
    while stepper._ahead is not None and stepper._ahead.index >= 0:
        seen.append(stepper._ahead)
        assert f"Step {stepper._ahead.index}, as it will be" in place(stepper)
        stepper.step()
    c = llm.trace.columns
    assert len(seen) == len(c.steps["step"])
    assert sum(len(preview.preempted) for preview in seen) > 0
    assert sum(preview.evicted for preview in seen) > 0
    for preview in seen:
        again = recorded(c.steps, c.step_requests, c.requests, c.blocks, preview.index)
        shares = [share._replace(num_tokens=0, admitted=False) for share in preview.shares]
        assert [share._replace(num_tokens=0, admitted=False) for share in again.shares] == shares
        assert replace(again, shares=()) == replace(preview, shares=(), queue=(), waiting=())


def test_a_step_that_is_taken_is_selected_for_the_others(open_llm: Open) -> None:
    stepper, budget, requests = linked(queue(open_llm()), Stepper, TokenBudget, Requests)
    assert isinstance(stepper, Stepper)
    stepper.step()
    stepper.step()
    assert stepper.selection.step == 1
    assert "Step 1:" in str(budget._place.value)
    assert 'class="here"' in str(requests._place.value)


def test_only_what_can_be_used_is_shown(open_llm: Open) -> None:
    def shown(stepper: Stepper) -> set[str]:
        names = ("_back", "_step", "_run", "_until", "_number", "_stop", "_budget")
        return {name for name in names if getattr(stepper, name).layout.display != "none"}

    live, trace = Stepper(queue(open_llm())), Stepper(build().trace)
    assert shown(live) == {"_step", "_run", "_until", "_stop", "_budget"}
    assert shown(trace) == {"_back", "_step", "_run", "_until"}
    live._until.value = "step"
    assert "_number" in shown(live)


def test_what_cannot_be_done_stands_in_its_place(open_llm: Open) -> None:
    llm = queue(open_llm(max_num_seqs=1))
    stepper = Stepper(llm)
    before = stepper._ahead
    for pick in ("drop:r9", "up:r9", "nonsense"):
        stepper._pick.value = pick
        assert 'class="message"' in place(stepper), pick
        assert stepper._ahead == before
    stepper.step()
    assert 'class="message"' not in place(stepper)
    llm.close()
    stepper.step()
    assert "this LLM is closed" in place(stepper)
    with pytest.raises(ValueError, match="condition is 'never': use one of finish, preemption"):
        stepper.run_until("never")


def test_while_a_call_drives_the_engine_it_says_so_and_does_nothing(open_llm: Open) -> None:
    llm = queue(open_llm())
    stream = llm.stream("Once there was", PARAMS)
    next(stream)
    stepper = Stepper(llm)
    count = len(llm.trace.steps)
    for act in (stepper.step, lambda: stepper.run_until("end")):
        act()
        assert "A call that is still open" in place(stepper)
        assert stepper._step.disabled
        assert repr(stepper) == "Stepper(busy)"
    assert len(llm.trace.steps) == count
    stream.close()
    stepper.step()
    assert not stepper._step.disabled
    assert "as it will be" in place(stepper)


def test_clicks_while_another_thread_generates_change_none_of_its_tokens(open_llm: Open) -> None:
    expected = [list(o.outputs[0].token_ids) for o in open_llm().generate(PROMPTS, PARAMS, use_tqdm=False)]
    llm = open_llm()
    stepper, done, clicks = Stepper(llm), threading.Event(), 0
    found: list[list[int]] = []

    def generate() -> None:
        outputs = llm.generate(PROMPTS * 2, PARAMS, use_tqdm=False)
        found.extend(list(output.outputs[0].token_ids) for output in outputs)
        done.set()

    thread = threading.Thread(target=generate)
    thread.start()
    while not done.is_set():
        stepper.step()
        stepper.run_until("end")
        clicks += 1
    thread.join()
    assert clicks > 3
    assert found == expected * 2
    stepper.look()
    assert "nothing to do" in place(stepper)
    assert llm.scheduler.preview().index == -1


async def shown(stepper: Stepper, words: str) -> None:
    async with asyncio.timeout(60):
        while words not in place(stepper):
            await asyncio.sleep(0.02)


def test_a_cell_that_steps_or_adds_is_seen_when_it_is_done(open_llm: Open) -> None:
    async def notebook() -> None:
        llm = open_llm()
        stepper = Stepper(llm)
        assert "nothing to do" in place(stepper)
        queue(llm)
        await shown(stepper, "Step 0, as it will be")
        llm.step()
        await shown(stepper, "Step 1, as it will be")
        llm.abort([f"r{number}" for number in range(len(PROMPTS))])
        await shown(stepper, "nothing to do")

    asyncio.run(notebook())


def test_where_nothing_draws_it_the_static_picture_is_of_now(open_llm: Open) -> None:
    llm = open_llm()
    stepper = Stepper(llm)
    assert "nothing to do" in stepper.static()
    queue(llm)
    assert "Step 0, as it will be" in stepper.static()


def test_a_run_goes_on_in_the_loop_until_it_is_stopped(open_llm: Open) -> None:
    async def notebook() -> None:
        llm = queue(open_llm())
        stepper = Stepper(llm)
        stepper.run_until("end")
        assert len(llm.trace.steps) == 0
        for _ in range(6):
            await asyncio.sleep(0)
        assert stepper._step.disabled
        stepper.stop()
        assert stepper._task is not None
        await stepper._task
        taken = len(llm.trace.steps)
        assert 0 < taken < 12
        assert f"Step {taken}, as it will be" in place(stepper)
        stepper.run_until("step", taken + 3)
        await stepper._task
        assert len(llm.trace.steps) == taken + 3

    asyncio.run(notebook())


def test_over_a_trace_it_goes_from_step_to_step_and_reads_only() -> None:
    house = build(budget=12, blocks=16)
    for number in range(9):
        house.add([1] * 9 + [number] * 4, 14)
    house.run()
    steps = house.trace.steps
    stepper = Stepper(house.trace)
    assert "Step 0 of the trace" in place(stepper)
    stepper.run_until("preemption")
    assert steps.preempted[stepper.selection.step] > 0
    assert "is preempted" in place(stepper)
    stepper.run_until("finish")
    ended = steps.collected_s[stepper.selection.step]
    assert ((house.trace.requests.finished_s - ended).abs() < 0.01).any()
    stepper.back()
    stepper.step()
    here = stepper.selection.step
    assert f"Step {here} of the trace" in place(stepper)
    stepper.run_until("step", here + 2)
    assert stepper.selection.step == here + 2
    stepper.run_until("end")
    assert stepper.selection.step == steps.step.iloc[-1]
    stepper.step()
    assert f"the trace holds steps 0 to {steps.step.iloc[-1]}, and no others" in place(stepper)
    assert "button" not in place(stepper)
    assert repr(stepper) == f"Stepper({len(steps)} steps, read-only)"


def test_the_pieces_of_the_bar_are_the_tokens(open_llm: Open) -> None:
    stepper = Stepper(queue(open_llm()))
    stepper.step()
    assert stepper._ahead is not None
    html = draw(stepper._ahead, "Step", {})
    drawn = sum(int(count) for count in re.findall(r"<title>r\d: (\d+) (?:prefill|decode)</title>", html))
    assert drawn == stepper._ahead.total_num_scheduled_tokens
    share = stepper._ahead.shares[0]
    many = replace(stepper._ahead, shares=(share,) * 500, budget=10_000)
    html = draw(many, "Step", {})
    assert html.count("<rect") < 10
    assert f"and {500 - MOST_PIECES} more requests" in html


def test_buttons_are_for_live_pages_and_names_are_escaped(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=1)
    for name in ("<i>", "&amp;", "a:b"):
        llm.add_request(PROMPTS[0], PARAMS, request_id=name)
    stepper = Stepper(llm)
    assert "<i>" not in stepper.static()
    assert 'data-pick="drop:a:b"' in stepper.static()
    stepper._pick.value = "first:a:b"
    stepper._pick.value = "drop:<i>"
    assert stepper._ahead is not None
    assert [waiting.request_id for waiting in stepper._ahead.queue] == ["a:b", "&amp;"]
