"""Runs and outputs to draw, and what somebody sees of their pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape

import numpy as np

from tests.trace.house import House, build
from workbench import CompletionOutput, RequestOutput
from workbench.token_logprobs import Logprob, TokenLogprobs
from workbench.widgets import Logprobs

TOKEN = re.compile(r'data-pick="token:(-?\d+)">(.*?)</span>(?:<wbr>|<br>)', re.DOTALL)
TITLE = re.compile(r'title="([^"]*)"')


def house_of(*prompts: Sequence[int], logprobs: int | None = 1, **settings: int) -> House:
    house = build(**settings)
    for prompt in prompts:
        house.add(prompt, 14, logprobs=logprobs, ignore_eos=True)
    return house.run()


def titles(widget: Logprobs) -> list[str]:
    """What hovering says, token by token."""
    return [unescape(title) for _, cell in TOKEN.findall(widget.static()) for title in TITLE.findall(cell)]


def place(widget: Logprobs) -> str:
    return str(widget._place.value)


def output_of(
    count: int, seed: int = 0, *, whole: int = 0, name: str = "0", above: float = 0.0
) -> RequestOutput:
    """Tokens whose second alternative was taken; with `whole`, all values of a vocabulary of that size."""
    rng = np.random.default_rng(seed)
    tops = above - np.sort(rng.exponential(1, (count, 4)).astype(np.float32), axis=1)
    ids = rng.permuted(np.tile(np.arange(50), (count, 1)), axis=1)[:, :4]
    rows = [np.log(rng.dirichlet(np.ones(whole))).astype(np.float32) for _ in range(count if whole else 0)]
    if rows:
        order = np.argsort(-np.array(rows), axis=1)
        ids, tops = order[:, :4], np.take_along_axis(np.array(rows), order[:, :4], 1)
    logprobs = TokenLogprobs(
        ids[:, 1], tops[:, 1], np.full(count, 2), ids, tops, lambda token_id, _: f" w{token_id}", whole=rows
    )
    one = CompletionOutput(0, "", ids[:, 1].tolist(), None, logprobs)
    return RequestOutput(name, "a prompt", [1, 2], None, [one], True)


def entries(output: RequestOutput) -> Sequence[dict[int, Logprob]]:
    found = output.outputs[0].logprobs
    assert found is not None
    return found


def rows(widget: Logprobs) -> dict[int, tuple[str, str]]:
    """By index: what is said of the token above and of the one below; "" where there is none."""
    found = {}
    for index, cell in TOKEN.findall(widget.static()):
        above, below = re.findall(r"<span(.*?)</span>", cell, re.DOTALL)
        found[int(index)] = tuple("".join(TITLE.findall(each)) for each in (above, below))
    return found
