"""In bfloat16 how a step is made up shows in the last bit, and tokens part only where that bit decides.

Two ways to compute a row (in chunks or whole, from the cache or afresh, alone or among others) round at
different places. Where the greedy tokens of two ways first part, the logits of the tokens taken have to be as
near to one another as such roundings are.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import pytest

from tests.gpu.test_eager import PROMPTS
from workbench import LLM, RequestOutput, SamplingParams

pytestmark = pytest.mark.gpu

COUNT = 64
# Each of the two logits is rounded to bfloat16 once, and is the product of a hidden state that has come
# through eight layers of such roundings: two units in the last place each.
ULPS = 4.0
SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "dtype": "bfloat16",
    "kv_cache_memory_bytes": 1 << 28,
    "logprobs_mode": "raw_logits",
}


class Parting(NamedTuple):
    """Where two answers to a prompt first differ."""

    prompt: int
    place: int
    gap: float  # between the two logits, in units in the last place of the larger


def prompts() -> list[str]:
    words = ["fox", "owl", "lantern", "bell", "map", "river", "kite", "train"]
    stories = [f"Write a story about a {a} and a {b}.\n\n" for a in words for b in words if a != b]
    return [*PROMPTS, *stories]


def answers(llm: LLM, texts: list[str]) -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=20)
    return llm.generate(texts, params, use_tqdm=False)


def partings(one: list[RequestOutput], other: list[RequestOutput]) -> list[Parting]:
    found = []
    for number, (a, b) in enumerate(zip(one, other, strict=True)):
        ids, others = list(a.outputs[0].token_ids), list(b.outputs[0].token_ids)
        differing = [place for place in range(COUNT) if ids[place] != others[place]]
        if not differing:
            continue
        place = differing[0]
        line = a.outputs[0].logprobs[place]
        assert others[place] in line, f"prompt {number}, token {place}: not one of the twenty best was taken"
        first, second = line[ids[place]].logprob, line[others[place]].logprob
        ulp = 2.0 ** (math.floor(math.log2(max(abs(first), 1e-30))) - 7)
        found.append(Parting(number, place, (first - second) / ulp))
    return found


@pytest.fixture(scope="module")
def base() -> list[RequestOutput]:
    with LLM(**SETTINGS) as llm:
        return answers(llm, prompts())


def check(base: list[RequestOutput], other: list[RequestOutput], what: str) -> None:
    found = partings(base, other)
    # Shown in the summary of the run: how many part, and how near the two logits were.
    gaps = sorted(round(parting.gap, 2) for parting in found)
    warnings.warn(f"{what}: {len(found)} of {len(base)} answers part, by {gaps} units", stacklevel=2)
    assert all(parting.gap <= ULPS for parting in found), found


@pytest.mark.parametrize(
    ("what", "settings"),
    [
        ("chunked", {"max_num_batched_tokens": 16, "max_num_seqs": 16}),
        ("a row at a time", {"max_num_seqs": 1}),
        ("synchronous", {"async_scheduling": False}),
        ("without cache", {"enable_prefix_caching": False}),
        ("preempted", {"num_gpu_blocks_override": 60, "kv_cache_memory_bytes": None, "max_num_seqs": 32}),
    ],
)
def test_tokens_part_only_where_the_last_bit_decides(
    base: list[RequestOutput], what: str, settings: dict[str, Any]
) -> None:
    with LLM(**SETTINGS | settings) as llm:
        other = answers(llm, prompts())
    if what == "preempted":
        assert sum(output.metrics.num_preemptions for output in other) > 0
    check(base, other, what)


def test_what_the_cache_holds_is_as_good_as_computed(base: list[RequestOutput]) -> None:
    with LLM(**SETTINGS) as llm:
        answers(llm, prompts())
        cached = answers(llm, prompts())
        assert any(output.num_cached_tokens for output in cached)
    check(base, cached, "cached")


def test_overlapped_and_synchronous_agree_to_the_bit() -> None:
    """The same steps in the same order: only when the host waits differs."""
    found = []
    for overlapped in (True, False):
        with LLM(**SETTINGS, async_scheduling=overlapped) as llm:
            outputs = answers(llm, prompts()[:20])
        found.append(
            [[(t, v.logprob) for line in o.outputs[0].logprobs for t, v in line.items()] for o in outputs]
        )
    assert found[0] == found[1]
