"""Requests and when they come: at once, at random, in bursts, as in a trace, in conversations.

Plain data, drawn from a seed. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from workbench.bench.trace_files import prompts_of, read_trace, scale_into
from workbench.bench.workloads import Length

N = TypeVar("N", int, float)
Times = npt.NDArray[np.float64]  # [requests] seconds since the first request could have come, ascending


class Traffic(NamedTuple):
    """What is sent to an engine. Its arrays are as long as one another."""

    name: str  # in words, with all that tells it from another
    at_s: tuple[float, ...]  # ascending; all 0: an offline run
    prompts: tuple[tuple[int, ...], ...]  # token ids
    outs: tuple[int, ...]  # tokens each is to generate, no more and no less

    @property
    def offline(self) -> bool:
        """Whether everything is there at once."""
        return not any(self.at_s)

    @property
    def longest(self) -> int:
        """Tokens of the longest request."""
        return max(len(prompt) + out for prompt, out in zip(self.prompts, self.outs, strict=True))


# --- when -----------------------------------------------------------------------------------------------


def at_once(requests: int) -> Times:
    """An offline run."""
    return np.zeros(_positive("requests", requests))


def poisson(requests: int, rate: float, seed: int = 0) -> Times:
    """`rate` requests a second on average, each independent of the others."""
    gaps = np.random.default_rng([seed, 1]).exponential(1 / _positive("rate", rate), requests)
    return np.cumsum(gaps)


def bursts(requests: int, size: int, every_s: float) -> Times:
    """`size` at a time, every so many seconds."""
    return np.arange(requests) // _positive("size", size) * np.float64(_positive("every_s", every_s))


# --- what -----------------------------------------------------------------------------------------------


def drawn(
    name: str, at_s: Times, prompt: Length, out: Length, vocab_size: int, *, shared: int = 0, seed: int = 0
) -> Traffic:
    """Random prompts of lengths from distributions, behind `shared` tokens that all have in common."""
    rng = np.random.default_rng([seed, 2])
    lengths, outs = prompt.draw(rng, len(at_s)), out.draw(rng, len(at_s))
    common = _tokens(rng, shared, vocab_size)
    prompts = [common + _tokens(rng, int(length), vocab_size) for length in lengths]
    return _traffic(name, at_s, prompts, outs.tolist())


def conversations(
    count: int,
    turns: int,
    *,
    system: int,
    question: Length,
    answer: Length,
    vocab_size: int,
    think_s: float = 1.0,
    rate: float = 1.0,
    seed: int = 0,
) -> Traffic:
    """Chats of several turns, which begin at `rate` a second; each prompt repeats all that was said before.

    What the model said is replaced by random tokens of the same number, so that prompts do not depend on it.

    Args:
        count: conversations.
        turns: of each.
        system: tokens all of them begin with.
        question: tokens of a turn's question.
        answer: tokens of a turn's answer.
        think_s: seconds on average from one turn to the next.
    """
    rng = np.random.default_rng([seed, 3])
    starts, common = poisson(count, rate, seed), _tokens(rng, system, vocab_size)
    asked: list[tuple[float, list[int], int]] = []
    for start in starts.tolist():
        said, at = list(common), start
        questions, answers = question.draw(rng, turns).tolist(), answer.draw(rng, turns).tolist()
        for ask, reply in zip(questions, answers, strict=True):
            said = said + _tokens(rng, ask, vocab_size)
            asked.append((at, said, reply))
            said = said + _tokens(rng, reply, vocab_size)
            at += float(rng.exponential(think_s)) if think_s else 0.0
    asked.sort(key=lambda one: one[0])
    name = f"{count} conversations of {turns} turns, {rate:g} a second, seed {seed}"
    return _traffic(name, np.array([at for at, *_ in asked]), [said for _, said, _ in asked], [
        out for *_, out in asked
    ])  # fmt: skip


def replayed(
    path: str | Path,
    vocab_size: int,
    max_model_len: int,
    *,
    seconds: float | None = None,
    speed: float = 1.0,
    seed: int = 0,
) -> Traffic:
    """A public trace's requests at its times, `speed` times as fast, its lengths scaled into a context."""
    logged = read_trace(path, seconds)
    scaled = scale_into(logged, max_model_len)
    at_s = np.array([request.at_s for request in logged]) / _positive("speed", speed)
    name = f"{Path(path).name}, first {seconds or logged[-1].at_s:g} s at {speed:g} times, seed {seed}"
    outs = [request.output_tokens for request in scaled.requests]
    return _traffic(
        f"{name}, lengths × {scaled.factor:.4g}", at_s, prompts_of(scaled, vocab_size, seed), outs
    )


def shareable_tokens(prompts: Sequence[Sequence[int]], block_size: int) -> int:
    """Prompt tokens that a cache which forgets nothing finds, were the prompts computed one after the other.

    A prompt finds the longest run of whole blocks with which an earlier one begins, less the last token.
    """
    seen: set[tuple[int, ...]] = set()
    found = 0
    for prompt in prompts:
        most = (len(prompt) - 1) // block_size
        blocks = [tuple(prompt[: (n + 1) * block_size]) for n in range(len(prompt) // block_size)]
        hits = next((n for n, prefix in enumerate(blocks[:most]) if prefix not in seen), most)
        found += hits * block_size
        seen.update(blocks)
    return found


def _traffic(name: str, at_s: Times, prompts: list[list[int]], outs: list[int]) -> Traffic:
    return Traffic(name, tuple(at_s.tolist()), tuple(map(tuple, prompts)), tuple(outs))


def _tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    return rng.integers(3, vocab_size, count).tolist()  # the first few ids are often special


def _positive(name: str, value: N) -> N:
    if not value > 0:
        raise ValueError(f"{name} is {value}: use more than 0")
    return value
