"""Threads and async callers of one engine: all get the tokens they would get alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Iterator

import pytest

from tests.llm.asking import COUNT, collect, greedy, is_right, prompts
from tests.llm.conftest import Models, Open, check_idle
from workbench import RequestOutput, SamplingParams


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "workbench-engine"]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not workers(), "a thread is left although nobody streams any more"


# --- async --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapped", [False, True])
def test_async_streams_share_batches(models: Models, open_llm: Open, overlapped: bool) -> None:
    llm = open_llm(async_scheduling=overlapped)

    async def everyone() -> list[list[int]]:
        return await asyncio.gather(*(collect(llm, prompt, greedy()) for prompt in prompts()))

    with llm.trace.record() as trace:
        streamed = asyncio.run(everyone())
    assert all(is_right(models, p, tokens) for p, tokens in zip(prompts(), streamed, strict=True))
    assert trace.step_requests.groupby("step").size().max() > 1, "no step held more than one request"
    check_idle(llm)


def test_async_streams_work_where_a_loop_runs_already(models: Models, open_llm: Open) -> None:
    """As in a notebook: awaited on a loop that is not theirs, in between other work of that loop."""
    llm = open_llm()
    ticks = 0

    async def ticking() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main() -> list[int]:
        ticker = asyncio.create_task(ticking())
        tokens = await collect(llm, prompts()[3], greedy())
        ticker.cancel()
        return tokens

    loop = asyncio.new_event_loop()
    try:
        assert is_right(models, prompts()[3], loop.run_until_complete(main()))
    finally:
        loop.close()
    assert ticks > 10, "the loop stood still while the engine worked"


def test_a_cancelled_task_aborts_its_request(models: Models, open_llm: Open) -> None:
    llm = open_llm(max_model_len=2000)

    async def main() -> list[int]:
        endless = asyncio.create_task(collect(llm, prompts()[0], greedy(max_tokens=None)))
        other = asyncio.create_task(collect(llm, prompts()[4], greedy()))
        while llm._engine.scheduler.counts.generation_tokens < 3:
            await asyncio.sleep(0.001)
        endless.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await endless
        return await other

    assert is_right(models, prompts()[4], asyncio.run(main()))
    with contextlib.suppress(IndexError):
        workers()[0].join(5)
    assert llm._engine.scheduler.counts.finished == {"abort": 1, "length": 1}
    check_idle(llm)


def test_leaving_an_async_stream_aborts_its_request(open_llm: Open) -> None:
    llm = open_llm(max_model_len=2000)

    async def main() -> None:
        stream = llm.astream(prompts()[0], greedy(max_tokens=None))
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(main())
    with contextlib.suppress(IndexError):
        workers()[0].join(5)
    assert llm._engine.scheduler.counts.finished == {"abort": 1}
    check_idle(llm)


def test_a_loop_that_closes_on_a_stream_leaves_an_idle_engine(open_llm: Open) -> None:
    """The stream is never closed: asyncio.run ends it, and the worker hears of a loop that is gone."""
    llm = open_llm(max_model_len=2000)
    kept = []

    async def main() -> None:
        stream = llm.astream(prompts()[0], greedy(max_tokens=None))
        kept.append(stream)
        await anext(stream)

    asyncio.run(main())
    with contextlib.suppress(IndexError):
        workers()[0].join(5)
    check_idle(llm)


def test_a_bad_async_prompt_is_refused_and_the_others_go_on(models: Models, open_llm: Open) -> None:
    llm = open_llm()

    async def main() -> tuple[list[int], BaseException]:
        bad = asyncio.create_task(collect(llm, [], greedy()))
        good = asyncio.create_task(collect(llm, prompts()[2], greedy()))
        done = await asyncio.gather(good, bad, return_exceptions=True)
        return done[0], done[1]

    tokens, error = asyncio.run(main())
    assert is_right(models, prompts()[2], tokens)
    assert isinstance(error, ValueError)


def test_async_callers_hear_of_an_engine_that_breaks_and_it_can_be_used_again(
    models: Models, open_llm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = open_llm()
    advance = llm._engine.advance
    calls = 0

    def breaking():
        nonlocal calls
        calls += 1
        if calls == 4:
            raise AssertionError("a law is broken")
        return advance()

    monkeypatch.setattr(llm._engine, "advance", breaking)

    async def main() -> list:
        return await asyncio.gather(
            *(collect(llm, prompt, greedy()) for prompt in prompts()[:3]), return_exceptions=True
        )

    assert all(isinstance(done, AssertionError) for done in asyncio.run(main()))
    for _ in range(2):
        assert is_right(models, prompts()[3], asyncio.run(collect(llm, prompts()[3], greedy())))
    check_idle(llm)


def test_generate_and_async_streams_share_an_engine(models: Models, open_llm: Open) -> None:
    llm = open_llm()

    async def main() -> tuple[list[int], list[RequestOutput]]:
        given = prompts()
        return await asyncio.gather(
            collect(llm, given[0], greedy()),
            asyncio.to_thread(llm.generate, given[1:], greedy(), use_tqdm=False),
        )

    tokens, outputs = asyncio.run(main())
    assert is_right(models, prompts()[0], tokens)
    for output, prompt in zip(outputs, prompts()[1:], strict=True):
        assert is_right(models, prompt, list(output.outputs[0].token_ids))


# --- streams and threads ------------------------------------------------------------------------------


def test_a_stream_closed_early_aborts_its_request(open_llm: Open) -> None:
    llm = open_llm()
    stream = llm.stream(prompts()[0], greedy(max_tokens=100))
    next(stream)
    stream.close()
    check_idle(llm)
    assert llm._engine.scheduler.counts.finished == {"abort": 1}
    llm.stream(prompts()[0], greedy())  # never started: never queued
    check_idle(llm)


def test_a_stream_collected_in_the_middle_of_a_step_aborts_its_request(
    models: Models, open_llm: Open
) -> None:
    """A notebook keeps the last traceback, and with it a stream, until the collector comes: at any time."""
    llm = open_llm(max_model_len=2000)
    stream = llm.stream(prompts()[0], greedy(max_tokens=None))
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    llm._emit.add(lambda event: gc.collect())
    (output,) = llm.generate([prompts()[1]], greedy(), use_tqdm=False)
    assert is_right(models, prompts()[1], list(output.outputs[0].token_ids))
    assert llm._engine.scheduler.counts.finished == {"abort": 1, "length": 1}
    check_idle(llm)


@pytest.mark.parametrize("blocks", [None, 16])
def test_streams_of_one_thread_can_be_read_in_turns(
    models: Models, open_llm: Open, blocks: int | None
) -> None:
    """Also where they take blocks from each other."""
    llm = open_llm(max_model_len=64, block_size=4, num_gpu_blocks_override=blocks)
    streams = [llm.stream(prompt, greedy()) for prompt in prompts()]
    tokens: list[list[int]] = [[] for _ in streams]
    with llm.trace.record() as trace:
        for _ in range(COUNT):
            for own, stream in zip(tokens, streams, strict=True):
                own += next(stream).outputs[0].token_ids
    assert all(next(stream, None) is None for stream in streams)
    assert all(is_right(models, p, own) for p, own in zip(prompts(), tokens, strict=True))
    if blocks is None:
        assert trace.step_requests.groupby("step").size().max() == len(streams)
    assert (trace.requests["preemptions"].sum() > 0) == (blocks is not None)


def test_a_stream_of_n_outputs_tells_each_of_them_whole(open_llm: Open) -> None:
    llm = open_llm()
    params = SamplingParams(n=3, seed=4, max_tokens=COUNT, ignore_eos=True)
    (whole,) = llm.generate([prompts()[1]], params, use_tqdm=False)
    texts, tokens = [""] * 3, [[], [], []]
    for output in llm.stream(prompts()[1], params):
        for piece in output.outputs:
            texts[piece.index] += piece.text
            tokens[piece.index] += piece.token_ids
    assert texts == [child.text for child in whole.outputs]
    assert tokens == [list(child.token_ids) for child in whole.outputs]


@pytest.mark.parametrize("overlapped", [False, True])
def test_threads_get_the_tokens_they_would_get_alone(
    models: Models, open_llm: Open, overlapped: bool
) -> None:
    llm = open_llm(async_scheduling=overlapped, max_num_batched_tokens=64, max_num_seqs=8)
    wrong: list[object] = []
    start = threading.Barrier(4)

    def work(own: int) -> None:
        start.wait()
        for turn in range(3):
            given = prompts()[own : own + 2]
            if turn == 1:
                tokens = [
                    [token for out in llm.stream(prompt, greedy()) for token in out.outputs[0].token_ids]
                    for prompt in given
                ]
            else:
                outputs = llm.generate(given, greedy(), use_tqdm=False)
                tokens = [list(output.outputs[0].token_ids) for output in outputs]
            wrong.extend(p for p, t in zip(given, tokens, strict=True) if not is_right(models, p, t))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for prompt in prompts():
        models.greedy(prompt, COUNT)  # transformers is asked by one thread only
    with llm.trace.record() as trace:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert trace.step_requests.groupby("step").size().max() > 2, "threads do not share steps"


def test_closing_ends_what_other_threads_wait_for(open_llm: Open) -> None:
    llm = open_llm(max_model_len=2000)
    ended: list[RequestOutput] = []
    thread = threading.Thread(
        target=lambda: ended.extend(llm.generate([prompts()[0]], greedy(max_tokens=None), use_tqdm=False))
    )
    thread.start()
    while llm._engine.scheduler.counts.generation_tokens < 3:
        time.sleep(0.001)
    llm.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [output.outputs[0].finish_reason for output in ended] == ["abort"]


def test_closing_ends_what_async_callers_wait_for(open_llm: Open) -> None:
    llm = open_llm(max_model_len=2000)

    async def main() -> list[RequestOutput]:
        got = []
        async for output in llm.astream(prompts()[0], greedy(max_tokens=None)):
            got.append(output)
            if len(got) == 2:
                llm.close()
        return got

    got = asyncio.run(asyncio.wait_for(main(), 10))
    assert got[-1].outputs[0].finish_reason == "abort"
