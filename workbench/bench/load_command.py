"""`workbench bench load`: from the command's options to traffic, and from its result to rows."""

from __future__ import annotations

import argparse
import math
from typing import Any

from workbench.bench.load import run
from workbench.bench.traffic import Traffic, at_once, drawn, poisson, replayed, shareable_tokens
from workbench.bench.workloads import LogNormal
from workbench.llm import LLM
from workbench.models.folder import resolve
from workbench.models.spec import read_spec

ORIGIN = ("date", "device", "torch", "triton", "workbench", "commit")
SHOWN = ("metric", "mean", "p50", "p90", "p99")
SIGMA = 0.8  # of the logarithm of a length: the longest tenth is four times as long as the shortest half


def measure(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row a metric, and the figures of the run.

    Raises:
        ValueError: traffic the engine cannot hold, a trace that cannot be read, an option out of range.
    """
    with LLM(options.model, skip_tokenizer_init=True) as llm:
        traffic = _traffic(options, llm)
        result = run(llm, traffic)
        blocks = llm.config.block_size
    if options.save is not None:
        result.save(options.save)
    origin = {name: result.about[name] for name in ORIGIN}
    rows = [
        origin | {"model": options.model, "traffic": traffic.name, "metric": metric} | dict(line)
        for metric, line in result.summary.iterrows()
    ]
    prompts = sum(map(len, traffic.prompts))
    allowed = shareable_tokens(traffic.prompts, blocks) / prompts
    return rows, {"traffic": traffic.name} | result.figures | {"hit_rate_of_an_endless_cache": allowed}


def _traffic(options: argparse.Namespace, llm: LLM) -> Traffic:
    vocab, room = read_spec(resolve(options.model)).vocab_size, llm.config.max_model_len
    if options.trace is not None:
        return replayed(
            options.trace, vocab, room, seconds=options.seconds, speed=options.speed, seed=options.seed
        )
    if options.seconds is not None:
        raise ValueError("--seconds is of a trace: give one with --trace, or --requests and --rate")
    times = at_once(options.requests)
    if options.rate is not None:
        times = poisson(options.requests, options.rate, options.seed)
    most = max(2, (room - options.shared) // 2)
    when = "at once" if options.rate is None else f"{options.rate:g} a second"
    name = f"{options.requests} requests {when}, {options.tokens} in, {options.out} out, seed {options.seed}"
    return drawn(
        f"{name}, {options.shared} shared",
        times,
        _length("--tokens", options.tokens, most),
        _length("--out", options.out, most),
        vocab,
        shared=options.shared,
        seed=options.seed,
    )


def _length(name: str, mean: int, most: int) -> LogNormal:
    """Of this mean, but for what is cut off at `most`."""
    if not 1 <= mean <= most:
        raise ValueError(f"{name} is {mean}: use 1 to {most}, half of what a request may hold")
    return LogNormal(math.log(mean) - SIGMA**2 / 2, SIGMA, 1, most)
