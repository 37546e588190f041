"""What is drafted changes the steps, and never what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.llm import tiny
from tests.llm.asking import prompts
from tests.llm.conftest import Models, Open, check_idle
from tests.llm.drafters import DRAFTERS, TestDrafter, draft_by
from tests.llm.processors import Identity
from workbench import LLM, RequestOutput, SamplingParams, StructuredOutputsParams
from workbench.logits_processors import BatchUpdate, update_rows
from workbench.sim.replay import replay
from workbench.trace import Trace

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "adaptive": False}
METHODS = ("ngram", "suffix", "draft_model")
COUNT = 14
Pick = Callable[[Tensor], list[int]]  # logits [vocab] -> token ids
PATTERN = "[ab]zqzq[ab]{2}qqq(zz)?(ab)*"
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "stop": ["e", "a "]},
    {"temperature": 0, "logprobs": 3, "max_tokens": 9},
    {"temperature": 0, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"temperature": 1.0, "logprobs": 0},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.1, "presence_penalty": 0.7, "logit_bias": {7: 3.0, 9: 3.0}},
    {"temperature": 1.0, "allowed_token_ids": list(range(5, 25)), "min_tokens": 6, "stop_token_ids": [8]},
    {"temperature": 1.0, "bad_words": ["the", "a b"], "allowed_token_ids": list(range(3, 90))},
    {"temperature": 0, "structured_outputs": StructuredOutputsParams(regex=PATTERN)},
    {"temperature": 1.0, "structured_outputs": StructuredOutputsParams(regex=PATTERN), "logprobs": 1},
    {"temperature": 1.0, "n": 2, "ignore_eos": True},
]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlapped": {"async_scheduling": True},
    "chunked": {"max_num_batched_tokens": 8, "max_num_seqs": 4},
    "tight": {"num_gpu_blocks_override": 14, "block_size": 8, "max_model_len": 80},
    "no cache": {"enable_prefix_caching": False, "block_size": 1},
}


class Unlikely(Identity):
    """What was generated before is less likely, the more so the longer ago: every token counts."""

    def __init__(self, config: Any, device: torch.device) -> None:
        super().__init__(config, device)
        self.outputs: dict[int, list[int]] = {}

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        update_rows(self.outputs, batch_update, lambda added: added.output_tok_ids)

    def apply(self, logits: Tensor) -> Tensor:
        for row, output in self.outputs.items():
            for ago, token_id in enumerate(reversed(output)):
                logits[row, token_id] -= 0.5 * (1 + ago)
        return logits


def drafting(method: str, models: Models) -> dict[str, Any]:
    """Its `speculative_config`; the model drafts for itself."""
    own = {"model": str(models.folder())} if method == "draft_model" else {}
    return NGRAM | {"method": method} | own


def asked() -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts that repeat themselves, so that there is something to look up."""
    given = [prompt + prompt[-5:] * 2 for prompt in prompts(4)] * 3
    common = {"max_tokens": COUNT, "seed": 11}
    return given, [SamplingParams(**common | options) for options in OPTIONS]


def said(outputs: list[RequestOutput]) -> list[tuple]:
    """Everything that is to be the same to the letter."""
    return [
        (list(c.token_ids), c.text, c.finish_reason, c.stop_reason, _ranks(c.logprobs))
        for output in outputs
        for c in output.outputs
    ]


def _ranks(logprobs: Any) -> list[list[int]] | None:
    """The ids of each token's logprobs, the likeliest first."""
    return None if logprobs is None else [sorted(p, key=lambda i: p[i].rank) for p in logprobs]


def numbers(outputs: list[RequestOutput]) -> list[float]:
    found = [c.logprobs for output in outputs for c in output.outputs if c.logprobs is not None]
    return [p.logprob for logprobs in found for position in logprobs for p in position.values()]


def generate(llm: LLM) -> list[RequestOutput]:
    return llm.generate(*asked(), use_tqdm=False)


def sequences(outputs: list[RequestOutput]) -> list[list[int]]:
    return [[*o.prompt_token_ids, *c.token_ids] for o in outputs for c in o.outputs]


@pytest.fixture(scope="module")
def plain(models: Models) -> list[RequestOutput]:
    with LLM(str(models.folder()), device="cpu", max_model_len=256) as llm:
        return generate(llm)


def rule(trace: Trace) -> list[int]:
    """What every request computed, by the sum rule."""
    r = trace.requests
    new = r.prompt_tokens - r.cached_tokens + r.output_tokens - 1
    return (new + r.recomputed_tokens + r.rejected_drafts + r.overshoot_tokens).tolist()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*DRAFTERS, *METHODS])
def test_the_output_is_that_of_no_speculation(
    models: Models, open_llm: Open, plain: list[RequestOutput], kind: str, way: str
) -> None:
    method = kind if kind in METHODS else "ngram"
    llm = open_llm(**WAYS[way], speculative_config=drafting(method, models))
    if kind not in METHODS:
        drafter = draft_by(llm, TestDrafter(kind, sequences(plain)))
    with llm.trace.record() as trace:
        outputs = generate(llm)
    assert said(outputs) == said(plain)
    assert np.allclose(numbers(outputs), numbers(plain), atol=1e-4)
    assert trace.steps.draft.sum() > 30, "hardly anything was drafted"
    right = kind in ("accurate", "adversarial", "draft_model")
    assert (trace.steps.accepted.sum() > (15 if kind == "draft_model" else 30)) == right
    assert trace.requests.computed_tokens.tolist() == rule(trace)
    if way == "tight":
        assert trace.requests.preemptions.sum() > 0
    if kind not in METHODS:
        assert drafter.left == len(trace.requests)
    check_idle(llm)


def test_what_is_drafted_adds_up(open_llm: Open, plain: list[RequestOutput], tmp_path: Path) -> None:
    llm = open_llm(speculative_config=NGRAM)
    draft_by(llm, TestDrafter("adversarial", sequences(plain)))
    with llm.trace.record(tmp_path / "kept") as trace:
        generate(llm)
    steps, chunks, tokens, requests = trace.steps, trace.step_requests, trace.tokens, trace.requests
    kept = ~chunks.dropped
    assert (chunks.draft == chunks.accepted + chunks.rejected)[kept].all()
    for name in ("draft", "accepted", "rejected"):
        assert steps[name].sum() == chunks[name].sum()
    assert (steps.draft <= steps.decode).all()
    assert tokens.accepted.sum() == steps.accepted.sum() == requests.accepted_drafts.sum() > 0
    assert requests.rejected_drafts.sum() == steps.rejected.sum() == trace.runs.rejected_tokens.sum() > 0
    assert tokens.drafted[tokens.accepted].all()
    assert (tokens.drafted & ~tokens.accepted).sum() > 0, "no draft was replaced"
    assert len(tokens) == steps.sampled.sum() + steps.forced.sum()
    for _, mine in tokens.groupby("request_id"):
        assert mine["index"].tolist() == list(range(len(mine)))
    named = {(m.name, m.labels): m.value for m in llm.get_metrics()}
    assert named["vllm:spec_decode_num_draft_tokens", ()] == chunks.draft[kept].sum()
    assert named["vllm:spec_decode_num_accepted_tokens", ()] == steps.accepted.sum()
    assert named["vllm:spec_decode_num_drafts", ()] == (chunks.draft[kept] > 0).sum()
    places = [value for (name, _), value in named.items() if name.endswith("accepted_tokens_per_pos")]
    assert sum(places) == steps.accepted.sum()
    assert places == sorted(places, reverse=True)
    told = trace.to_prometheus()
    for (name, labels), value in named.items():
        if "spec_decode" in name:
            said_labels = "".join(f',{label}="{text}"' for label, text in labels)
            assert any(
                line.startswith(f"{name}_total{{") and f"{said_labels}}} {float(value)!r}" in line
                for line in told.splitlines()
            ), name
    assert Trace.load(tmp_path / "kept").tokens.drop(columns="text").equals(tokens.drop(columns="text"))
    assert not trace.diff(replay(trace))


@pytest.mark.parametrize("end", ["max_tokens", "stop", "stop_token_ids"])
def test_an_end_inside_an_accepted_run_is_where_it_was(open_llm: Open, end: str) -> None:
    (prompt,) = prompts(1)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    llm = open_llm(speculative_config=NGRAM)
    (whole,) = llm.generate([prompt], params, use_tqdm=False)
    tokens, text = list(whole.outputs[0].token_ids), whole.outputs[0].text
    draft_by(llm, TestDrafter("accurate", [prompt + tokens + tokens]), most=9)
    if end == "stop":
        cuts = [text[i : i + 2] for i in range(2, len(text) - 2)]
        cut = next(c for c in cuts if "\ufffd" not in c and c.strip())
        asked = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=[cut])
        expected = text[: text.index(cut)]
    else:
        place = next(i for i in range(3, 9) if tokens[i] not in tokens[:i])
        options: dict[str, Any] = {"max_tokens": place + 1}
        if end == "stop_token_ids":
            options = {"max_tokens": 12, "stop_token_ids": [tokens[place]]}
        asked = SamplingParams(temperature=0, ignore_eos=True, **options)
    llm.reset_prefix_cache()
    with llm.trace.record() as trace:
        (found,) = llm.generate([prompt], asked, use_tqdm=False)
    if end == "stop":
        assert (found.outputs[0].text, found.outputs[0].stop_reason) == (expected, cut)
    else:
        assert list(found.outputs[0].token_ids) == tokens[: place + 1]
        assert found.outputs[0].finish_reason == ("length" if end == "max_tokens" else "stop")
    assert len(trace.steps) == 2, "the run was not accepted at once"
    assert trace.requests.computed_tokens.tolist() == rule(trace)
    if end == "max_tokens":
        assert trace.steps.rejected.sum() == 0, "more was drafted than may come"


@pytest.mark.parametrize("kind", DRAFTERS)
def test_processors_see_every_token_and_no_other(
    open_llm: Open, plain: list[RequestOutput], kind: str
) -> None:
    given, params = asked()
    pairs = [(p, a) for p, a in zip(given, params, strict=True) if a.structured_outputs is None]
    (given, params), settings = zip(*pairs, strict=True), {"logits_processors": [Unlikely]}
    without = open_llm(**settings)
    expected = without.generate(list(given), list(params), use_tqdm=False)
    llm = open_llm(**settings, speculative_config=NGRAM)
    draft_by(llm, TestDrafter(kind, sequences(expected)))
    found = llm.generate(list(given), list(params), use_tqdm=False)
    assert said(found) == said(expected)
    assert said(found) != said(plain)[: len(found)], "the processor changed nothing"
    assert llm._engine.scheduler.counts.draft_tokens > 30


def chances(oracle: Any, prompt: list[int], count: int, pick: Pick) -> dict[tuple[int, ...], float]:
    """Of all texts of so many tokens, each out of those that `pick` finds in its logits."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(count):
        before, found = found, {}
        for text, chance in before.items():
            logits = tiny.logits(oracle, [*prompt, *text])[-1].double()
            ids = pick(logits)
            for token_id, share in zip(ids, logits[ids].softmax(-1).tolist(), strict=True):
                found[*text, token_id] = chance * share
    return found


def check_distribution(texts: list[tuple[int, ...]], likely: dict[tuple[int, ...], float]) -> None:
    """Chi-square of texts against the chance of each that can be."""
    observed = np.array([texts.count(text) for text in likely])
    expected = len(texts) * np.array([*likely.values()])
    rare = expected < 5  # chi-square wants no rare cells: they count as one
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    assert observed.sum() == len(texts)
    chi = float(((observed - expected) ** 2 / expected)[expected >= 1].sum())
    freedom = int((expected >= 1).sum()) - 1
    assert chi < freedom + 5 * (2 * freedom) ** 0.5, f"{chi} with {freedom} degrees of freedom"


@pytest.mark.parametrize("kind", DRAFTERS)
def test_tokens_are_distributed_as_the_model_has_it(models: Models, open_llm: Open, kind: str) -> None:
    """Over all texts of three tokens out of three."""
    prompt, ids, count = prompts(1)[0], [17, 90, 201], 3000
    texts = chances(models.oracle(), prompt, 3, lambda logits: ids)
    llm = open_llm(speculative_config=NGRAM, max_num_seqs=500)
    likely = max(texts, key=texts.__getitem__)
    draft_by(llm, TestDrafter(kind, [[*prompt, *text] for text in (likely, *texts)]))
    params = SamplingParams(n=count, max_tokens=3, temperature=1.0, allowed_token_ids=ids)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    check_distribution([tuple(c.token_ids) for c in output.outputs], texts)
    assert llm._engine.scheduler.counts.draft_tokens > count / 4


@pytest.mark.parametrize("method", ["suffix", "draft_model"])
def test_with_real_drafters_tokens_are_distributed_as_the_model_has_it(
    models: Models, open_llm: Open, method: str
) -> None:
    """Over all texts of three tokens, each of the likeliest three: those that a draft model says, too.

    A fourth token is sampled and not looked at, so that two drafts may stand ahead of it.
    """
    prompt, count = prompts(1)[0], 3000
    texts = chances(models.oracle(), prompt, 3, lambda logits: logits.topk(3).indices.tolist())
    llm = open_llm(speculative_config=drafting(method, models), max_num_seqs=64)
    params = SamplingParams(n=count, max_tokens=4, temperature=1.0, top_k=3, ignore_eos=True)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    check_distribution([tuple(c.token_ids[:3]) for c in output.outputs], texts)
    counts = llm._engine.scheduler.counts
    assert count / 4 < counts.accepted_tokens < counts.draft_tokens - count / 4, "all stood, or none did"


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "no dict": ("ngram", TypeError, "speculative_config is 'ngram': use a dict"),
    "no method": ({}, ValueError, "the method is None: use one of 'ngram', 'suffix', 'draft_model'"),
    "another method": (
        {"method": "medusa"}, ValueError, "'medusa': use one of 'ngram', 'suffix', 'draft_model'"
    ),
    "another's name": (
        {"method": "suffix", "prompt_lookup_max": 3}, TypeError, "'suffix' has no 'prompt_lookup_max'"
    ),
    "no model": ({"method": "draft_model"}, ValueError, "the model of method 'draft_model' is None: use a"),
    "a model": ({"model": "zoo/wren-1m"}, TypeError, "of method 'ngram' has no 'model'"),
    "no tokens": ({"num_speculative_tokens": 0}, ValueError, "num_speculative_tokens is 0: use 1 or more"),
    "fewer": ({"num_speculative_tokens": -2}, ValueError, "num_speculative_tokens is -2: use 1 or more"),
    "a typo": ({"prompt_lookup_mx": 3}, TypeError, "no 'prompt_lookup_mx': did you mean 'prompt_lookup_max'"),
    "no length": ({"prompt_lookup_min": 0}, ValueError, "prompt_lookup_min is 0: use 1 or more"),
    "min over max": (
        {"prompt_lookup_min": 3, "prompt_lookup_max": 2}, ValueError, "is 3, more than.* 2: lower the one"
    ),
    "a word": ({"adaptive": "yes"}, TypeError, "adaptive is 'yes': use True or False"),
    "by batch": ({"disable_by_batch_size": 8}, TypeError, "'disable_by_batch_size': .*adaptive=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_speculative_config_is_refused_at_load(open_llm: Open, case: str) -> None:
    given, kind, message = BAD[case]
    if isinstance(given, dict) and case not in ("no method", "another method"):
        given = {"method": "ngram"} | given
    with pytest.raises(kind, match=message):
        open_llm(speculative_config=given)


def test_with_adaptive_on_the_output_is_the_same(open_llm: Open, plain: list[RequestOutput]) -> None:
    llm = open_llm(speculative_config={"method": "ngram"}, async_scheduling=True)
    assert said(generate(llm)) == said(plain)
    assert llm.config.speculation is not None
    assert llm.config.speculation.adaptive
