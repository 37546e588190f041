"""Traffic sent through an engine, offline or at its own times, and what the trace says of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from workbench.bench.provenance import provenance, version
from workbench.bench.result import BenchmarkResult
from workbench.bench.traffic import Traffic
from workbench.llm import LLM
from workbench.params import SamplingParams
from workbench.trace import Trace

TEXTS = ("prompt", "output", "stop_reason")  # columns of the trace's requests that say nothing about time


def run(llm: LLM, traffic: Traffic, *, temperature: float = 0.0, use_tqdm: bool = True) -> BenchmarkResult:
    """Send traffic to an engine and wait for its end.

    Offline traffic is one call of `generate`; other traffic is sent at its times, whatever the engine is busy
    with (an open loop), each request from an async caller of its own. Every request generates exactly the
    tokens it asks for.

    Args:
        llm: an engine that nobody else uses meanwhile.
        traffic: what to send, and when.
        temperature: of the sampling; 0: greedy.
        use_tqdm: whether a bar counts the requests that have ended.

    Raises:
        ValueError: a request that the engine cannot hold.
        RuntimeError: a request ended before it had its tokens.
    """
    if traffic.longest > llm.config.max_model_len:
        raise ValueError(
            f"the longest request takes {traffic.longest} tokens: raise max_model_len, which is "
            f"{llm.config.max_model_len}, or send shorter requests"
        )
    asked = [
        SamplingParams(temperature=temperature, max_tokens=out, ignore_eos=True, detokenize=False)
        for out in traffic.outs
    ]
    with llm.trace.record() as trace:
        if traffic.offline:
            llm.generate([list(prompt) for prompt in traffic.prompts], asked, use_tqdm=use_tqdm)
        else:
            _send(llm, traffic, asked, use_tqdm)
    return _result(llm, traffic, trace, temperature)


def _send(llm: LLM, traffic: Traffic, asked: list[SamplingParams], use_tqdm: bool) -> None:
    """In a thread with a loop of its own, for the caller's may be running, as a notebook's is."""
    begun: Future[Callable[[], object]] = Future()  # what stops it

    async def send() -> None:
        loop, sending = asyncio.get_running_loop(), asyncio.current_task()
        assert sending is not None, "asyncio.run made it"
        begun.set_result(lambda: loop.call_soon_threadsafe(sending.cancel))
        await _at_their_times(llm, traffic, asked, use_tqdm)

    with ThreadPoolExecutor(1, "workbench-load") as pool:
        done = pool.submit(lambda: asyncio.run(send()))
        try:
            done.result()
        except KeyboardInterrupt:  # heard here: nothing more is sent, and what is open is aborted
            with suppress(RuntimeError):  # its loop has ended by itself meanwhile
                begun.result()()
            wait([done])
            while llm.has_unfinished_requests():  # its worker thread ends them
                time.sleep(0.01)
            raise


async def _at_their_times(llm: LLM, traffic: Traffic, asked: list[SamplingParams], use_tqdm: bool) -> None:
    with tqdm(total=len(asked), desc="Requests", unit="request", disable=not use_tqdm) as bar:

        async def one(prompt: list[int], params: SamplingParams) -> None:
            async for _ in llm.astream(prompt, params):
                pass
            bar.update()

        began, tasks = time.perf_counter(), []
        try:
            for at_s, prompt, params in zip(traffic.at_s, traffic.prompts, asked, strict=True):
                await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - began)))
                tasks.append(asyncio.create_task(one(list(prompt), params)))
            await asyncio.gather(*tasks)
        finally:  # closing a stream aborts its request
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _result(llm: LLM, traffic: Traffic, trace: Trace, temperature: float) -> BenchmarkResult:
    requests = trace.requests.drop(columns=list(TEXTS))
    tokens = trace.tokens
    short = [index for index, out in enumerate(traffic.outs) if requests["output_tokens"].iloc[index] != out]
    if short:
        line = requests.iloc[short[0]]
        raise RuntimeError(
            f"{len(short)} requests ended early; number {short[0]} had {line['output_tokens']} of "
            f"{traffic.outs[short[0]]} tokens and ended with {line['finish_reason']!r}"
        )
    # A request that runs on its own takes a step for a token; in one step its tokens come together.
    gaps = tokens.groupby("request_id", sort=False)["at_s"].diff().dropna().to_numpy(np.float64)
    about: dict[str, Any] = provenance(llm.config.device_name) | {
        "transformers": version("transformers"),
        "settings": trace.runs["config"].iloc[0],
        "model": trace.runs["model"].iloc[0],
        "temperature": temperature,
        "traffic": traffic.name,
    }
    return BenchmarkResult(traffic, about, requests, trace.steps, gaps)
