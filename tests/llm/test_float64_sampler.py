"""What is sampled from is what a float64 reference of the sampler's order says, and the draws are fair."""

from __future__ import annotations

import random

import pytest
import torch

from tests.llm import tiny
from tests.llm.conftest import Models, Open
from tests.llm.float64_sampler import BAD, NEVER, OPTIONS, processed, spellings
from workbench import LLM, SamplingParams

DICE = random.Random(8)
PROMPTS = {
    name: [DICE.randrange(3, tiny.VOCAB) for _ in range(6 + place)] for place, name in enumerate(OPTIONS)
}
COUNT = 8


def asked(name: str, **more: object) -> SamplingParams:
    return SamplingParams(**{"seed": 5, "max_tokens": COUNT, "logprobs": -1} | OPTIONS[name] | more)


@pytest.mark.parametrize("settings", [{}, {"async_scheduling": True, "max_num_batched_tokens": 24}])
def test_processed_logprobs_are_those_of_the_reference(
    models: Models, open_llm: Open, settings: dict
) -> None:
    llm = open_llm(logprobs_mode="processed_logprobs", max_num_seqs=16, **settings)
    outputs = llm.generate(list(PROMPTS.values()), [asked(name) for name in OPTIONS], use_tqdm=False)
    changed = set()
    for name, output in zip(OPTIONS, outputs, strict=True):
        prompt, tokens = PROMPTS[name], list(output.outputs[0].token_ids)
        words = spellings(llm.get_tokenizer(), OPTIONS[name].get("bad_words", []))
        rows = tiny.logits(models.oracle(), [*prompt, *tokens])[len(prompt) - 1 : -1]
        for place, (entry, row) in enumerate(zip(output.outputs[0].logprobs, rows, strict=True)):
            expected = processed(row, asked(name), prompt, tokens[:place], words, tiny.EOS).log_softmax(-1)
            found = torch.tensor([entry[token_id].logprob for token_id in range(tiny.VOCAB)]).double()
            assert torch.equal(found == NEVER, expected == NEVER), (name, place)
            kept = expected > NEVER
            torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-4)
            if not torch.allclose(row.double().log_softmax(-1), expected, atol=1e-3):
                changed.add(name)
    assert changed == set(OPTIONS) - {"nothing"}, "an option that changes nothing is not tested"


def test_raw_logprobs_are_the_models_whatever_is_asked(models: Models, open_llm: Open) -> None:
    llm = open_llm(max_num_seqs=16)
    outputs = llm.generate(list(PROMPTS.values()), [asked(name) for name in OPTIONS], use_tqdm=False)
    for name, output in zip(OPTIONS, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        rows = tiny.logits(models.oracle(), [*PROMPTS[name], *tokens])[len(PROMPTS[name]) - 1 : -1]
        for entry, row in zip(output.outputs[0].logprobs, rows.log_softmax(-1), strict=True):
            found = torch.tensor([entry[token_id].logprob for token_id in range(tiny.VOCAB)])
            torch.testing.assert_close(found, row, rtol=0, atol=1e-4)
            assert float(found.double().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["nothing", "temperature", "min_p", "top_p", "all"])
def test_tokens_are_drawn_from_the_processed_distribution(models: Models, open_llm: Open, name: str) -> None:
    """Chi-square over a few thousand draws of one token; seeds are fixed, so it passes always or never."""
    draws, prompt = 4000, PROMPTS[name]
    options = {"allowed_token_ids": list(range(20, 60))} | OPTIONS[name] | {"min_tokens": 0}
    params = SamplingParams(**options, n=draws, seed=77, max_tokens=1, detokenize=False)
    llm = open_llm()
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    row = tiny.logits(models.oracle(), prompt)[-1]
    words = spellings(llm.get_tokenizer(), options.get("bad_words", []))
    expected = draws * processed(row, params, prompt, [], words, tiny.EOS).softmax(-1)
    drawn = torch.tensor([child.token_ids[0] for child in output.outputs])
    counts = drawn.bincount(minlength=tiny.VOCAB).double()
    assert (counts[expected == 0] == 0).all()
    rare = expected < 5  # too few for the test: they count together
    found = torch.cat((counts[~rare], counts[rare].sum()[None]))
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    assert len(wanted) > 4
    statistic = ((found - wanted) ** 2 / wanted).sum()
    p = torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2.0).double(), statistic / 2)
    assert p > 1e-4


def test_bad_words_are_never_said(open_llm: Open) -> None:
    """Where nothing but the pieces of two words can come, with and without spaces."""
    llm = open_llm(max_num_seqs=16)
    tokenizer = llm.get_tokenizer()
    pieces = sorted({i for word in ("bird", "sang", "tree") for i in spellings(tokenizer, [word])[1]})
    common = {"allowed_token_ids": pieces, "max_tokens": 40, "temperature": 1.5, "ignore_eos": True, "n": 8}
    (free,) = llm.generate(["the"], SamplingParams(seed=1, **common), use_tqdm=False)
    (held,) = llm.generate(["the"], SamplingParams(seed=1, bad_words=["bird sang"], **common), use_tqdm=False)
    assert any("bird sang" in child.text for child in free.outputs)
    assert not any("bird sang" in child.text for child in held.outputs)
    assert any("bird" in child.text for child in held.outputs), "a part of it may be said"
    assert any("sang" in child.text for child in held.outputs)


def test_a_bad_word_that_the_prompt_begins_may_be_ended(open_llm: Open) -> None:
    """Only what was generated counts, as in vLLM."""
    llm = open_llm()
    ids = llm.get_tokenizer().encode("bird sang", add_special_tokens=False)
    assert len(ids) > 1
    only = SamplingParams(
        bad_words=["bird sang"], allowed_token_ids=[ids[-1], 4], logit_bias={ids[-1]: 90}, max_tokens=1
    )
    (output,) = llm.generate([ids[:-1]], only, use_tqdm=False)
    assert output.outputs[0].token_ids == ids[-1:]


def test_words_are_forbidden_at_the_beginning_and_behind_a_space(open_llm: Open) -> None:
    llm = open_llm(logprobs_mode="processed_logprobs")
    tokenizer = llm.get_tokenizer()
    ends = {ids[0] for ids in spellings(tokenizer, ["the"]) if len(ids) == 1}
    assert ends, "the tokenizer has it as one token"
    for word in ("the", " the"):
        (output,) = llm.generate(
            ["a"], SamplingParams(bad_words=[word], logprobs=-1, max_tokens=1), use_tqdm=False
        )
        (entry,) = output.outputs[0].logprobs
        assert {i for i, value in entry.items() if value.logprob == NEVER} == ends


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_words": [" "]}, "bad_words holds ' ', which is no word.*leave it out"),
        ({"bad_words": ["a", ""]}, "bad_words holds an empty string"),
        ({"bad_words": ["a"], "allowed_token_ids": [68]}, "forbid every token.*allow another"),
    ],
)
def test_words_that_cannot_be_forbidden_are_named(open_llm: Open, options: dict, message: str) -> None:
    llm: LLM = open_llm()
    if "allowed_token_ids" in options:
        options = options | {"allowed_token_ids": llm.get_tokenizer().encode("a")}
    with pytest.raises(ValueError, match=message):
        llm.generate(["a"], SamplingParams(**options), use_tqdm=False)


def test_words_without_a_tokenizer_are_refused(open_llm: Open) -> None:
    llm = open_llm(skip_tokenizer_init=True)
    with pytest.raises(ValueError, match="bad_words need a tokenizer.*use logit_bias"):
        llm.generate([[5]], SamplingParams(bad_words=BAD), use_tqdm=False)
