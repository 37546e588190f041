"""`llm.scheduler`: a step is the one that was shown, edits change no tokens, what cannot be done says so."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from tests.llm.conftest import Models, Open
from tests.llm.test_by_hand import COUNT, greedy, prompts
from workbench import RequestOutput


def test_steps_that_were_looked_at_and_edited_give_the_tokens_of_transformers(
    models: Models, open_llm: Open
) -> None:
    llm = open_llm(max_num_batched_tokens=64, max_num_seqs=2, async_scheduling=True)
    names = [llm.add_request(prompt, greedy()) for prompt in prompts()]
    llm.scheduler.move(names[3], 0)
    started: list[str] = []
    last: dict[str, RequestOutput] = {}
    number = 0
    while llm.has_unfinished_requests():
        llm.scheduler.token_budget = 64 - 9 * (number % 7)
        seen, step = llm.scheduler.preview(), llm.step()
        assert (seen.index, seen.budget) == (step.index, step.budget)
        assert seen.num_scheduled_tokens == step.num_scheduled_tokens
        assert {share.request_id: share.cached for share in seen.shares if share.admitted} == step.cached
        assert list(seen.preempted) == step.preempted
        started += [share.request_id for share in seen.shares if share.admitted]
        last |= {output.request_id: output for output in step.outputs}
        number += 1
    assert started[0] == names[3]
    for name, prompt in zip(names, prompts(), strict=True):
        expected = models.greedy(prompt, COUNT)
        assert list(last[name].outputs[0].token_ids)[: len(expected)] == expected


def test_looking_leaves_the_engine_as_it_was(open_llm: Open) -> None:
    llm = open_llm(max_num_batched_tokens=32)
    assert llm.scheduler.preview().index == -1
    llm.add_request(prompts()[0], greedy())
    before = llm.trace.events
    assert llm.scheduler.preview() == llm.scheduler.preview()
    assert len(llm.trace.events) == len(before)
    while llm.has_unfinished_requests():
        llm.step()
    assert llm.scheduler.preview().index == -1


def test_whoever_waits_can_be_moved_and_dropped(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=1)
    names = [llm.add_request(prompt, greedy(), request_id=f"r{k}") for k, prompt in enumerate(prompts())]
    llm.scheduler.move("r4", 1)
    llm.scheduler.move("r0", 4)
    assert [waiting.request_id for waiting in llm.scheduler.waiting] == ["r4", "r1", "r2", "r3", "r0"]
    llm.scheduler.drop("r2")
    assert [waiting.request_id for waiting in llm.scheduler.waiting] == ["r4", "r1", "r3", "r0"]
    outputs: list[RequestOutput] = []
    while llm.has_unfinished_requests():
        outputs += [output for output in llm.step().outputs if output.finished]
    assert [output.request_id for output in outputs] == ["r2", "r4", "r1", "r3", "r0"]
    assert outputs[0].outputs[0].finish_reason == "abort"
    assert set(names) == {output.request_id for output in outputs}


def test_one_child_of_several_can_be_dropped(open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=1)
    llm.add_request(prompts()[0], greedy(n=3, temperature=1), request_id="r")
    llm.scheduler.drop("1_r")
    last = None
    while llm.has_unfinished_requests():
        last = llm.step().outputs
    assert last
    assert [answer.finish_reason for answer in last[0].outputs] == ["length", "abort", "length"]


def test_what_cannot_be_done_names_the_value_and_the_remedy(open_llm: Open) -> None:
    llm = open_llm(max_num_batched_tokens=48, max_num_seqs=1)
    for number in range(2):
        llm.add_request(prompts()[0], greedy(), request_id=f"r{number}")
    for tokens, error, words in (
        (0, ValueError, "token_budget is 0: use 1 or more"),
        (49, ValueError, "token_budget is 49, this engine was built for 48.*max_num_batched_tokens=49"),
        (2.5, TypeError, "token_budget is 2.5: use an integer"),
    ):
        with pytest.raises(error, match=words):
            llm.scheduler.token_budget = tokens  # type: ignore[assignment]
    with pytest.raises(ValueError, match="request 'r7' does not wait"):
        llm.scheduler.move("r7", 0)
    with pytest.raises(ValueError, match="place is 2, 2 requests wait: use 0 to 1"):
        llm.scheduler.move("r0", 2)
    llm.step()
    with pytest.raises(ValueError, match="request 'r0' does not wait"):
        llm.scheduler.drop("r0")
    assert llm.scheduler.token_budget == 48
    llm.abort(["r0", "r1"])
    llm.step()
    llm.close()
    for act in (llm.scheduler.preview, lambda: llm.scheduler.waiting, lambda: llm.scheduler.busy):
        with pytest.raises(RuntimeError, match="this LLM is closed"):
            act()


def test_the_engine_is_busy_while_a_call_waits_for_its_own(open_llm: Open) -> None:
    llm = open_llm()
    llm.add_request(prompts()[0], greedy())
    assert not llm.scheduler.busy
    stream = llm.stream(prompts()[1], greedy())
    next(stream)
    assert llm.scheduler.busy
    stream.close()
    assert not llm.scheduler.busy
    while llm.has_unfinished_requests():
        llm.step()


def test_looking_and_editing_beside_generate_changes_none_of_its_tokens(
    models: Models, open_llm: Open
) -> None:
    llm = open_llm(max_num_batched_tokens=64, max_num_seqs=3, async_scheduling=True)
    done = threading.Event()
    seen = 0

    def look() -> None:
        nonlocal seen
        while not done.is_set():
            preview = llm.scheduler.preview()
            seen += preview.index >= 0
            llm.scheduler.token_budget = 16 + preview.index % 48
            if len(waiting := llm.scheduler.waiting) > 1:
                with suppress(ValueError):  # it was admitted meanwhile
                    llm.scheduler.move(waiting[-1].request_id, 0)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        outputs = llm.generate(prompts() * 3, greedy(), use_tqdm=False)
    finally:
        done.set()
        thread.join()
    assert seen
    for output, prompt in zip(outputs, prompts() * 3, strict=True):
        expected = models.greedy(prompt, COUNT)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected
