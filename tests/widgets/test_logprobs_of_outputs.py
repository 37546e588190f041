"""Every token says what an output says of it; an engine and its outputs say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest

from tests.widgets.logprobs_seen import entries, output_of, place, rows, titles
from workbench import LLM, CompletionOutput, RequestOutput, SamplingParams
from workbench.trace.pictures import logprobs as pictures
from workbench.widgets import Logprobs


def test_outputs_are_shown_as_they_are() -> None:
    output = output_of(30)
    widget = Logprobs([output_of(3, name="other"), output])
    widget.request.value = 1
    said = titles(widget)
    assert len(said) == 30
    for token_id, entry, title in zip(output.outputs[0].token_ids, entries(output), said, strict=True):
        assert f"“ w{token_id}” (id {token_id})" in title
        for other, logprob in entry.items():
            arrow = " ←" if other == token_id else ""
            line = f"{logprob.rank}. {100 * math.exp(logprob.logprob):.3g} %  “ w{other}”{arrow}"
            assert line in title.split("\n")
    assert Logprobs(output).static() == Logprobs([output]).static()
    assert "2 requests, 33 tokens" in repr(widget)


def test_outputs_of_plain_lists_look_the_same_as_those_of_arrays() -> None:
    output = output_of(30)
    (one,) = output.outputs
    plain = CompletionOutput(0, "", list(one.token_ids), None, list(entries(output)))
    listed = RequestOutput("0", None, [1], None, [plain], True)
    assert Logprobs(listed).static() == Logprobs(output).static()


def test_outputs_have_entropies_where_they_have_the_vocabulary() -> None:
    widget = Logprobs(output_of(8))
    widget.by.value = "entropy"
    assert "Outputs hold no entropies" in place(widget)
    output = output_of(8, whole=50)
    told = Logprobs(output)
    told.by.value = "entropy"
    assert "Outputs hold no entropies" not in place(told)
    for entry, title in zip(entries(output), titles(told), strict=True):
        p = np.exp(np.array([each.logprob for each in entry.values()], np.float64))
        assert f"entropy {-(p * np.log(p)).sum():.3g} nats" in title
        assert title.count("%") == 1 + pictures.MOST_SAID


def test_logits_are_coloured_by_rank_and_called_logits() -> None:
    widget = Logprobs(output_of(9, above=12.0))
    assert "These are logits" in place(widget)
    assert set(re.findall(r'<span class="(s\d)', place(widget))) == {"s1"}  # rank 2
    assert "logit 1" in titles(widget)[0]
    assert "%" not in titles(widget)[0]


def test_outputs_without_logprobs_say_how_to_ask() -> None:
    (one,) = output_of(4).outputs
    bare = RequestOutput("0", None, [1], None, [CompletionOutput(0, "x", one.token_ids)], True)
    assert "SamplingParams(logprobs=5)" in place(Logprobs(bare))


@pytest.mark.parametrize("wrong", [{"not": "a trace"}, [], ["text"], [output_of(1), None]])
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="use an LLM, a Trace"):
        Logprobs(wrong)
    with pytest.raises(TypeError, match="use an LLM, a Trace"):
        Logprobs(output_of(2), beside=wrong)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[LLM, LLM]]:
    with (
        LLM("zoo/wren-1m", max_num_seqs=4) as raw,
        LLM("zoo/wren-1m", max_num_seqs=4, logprobs_mode="processed_logprobs") as processed,
    ):
        yield raw, processed


def test_raw_stands_beside_processed(engines: tuple[LLM, LLM]) -> None:
    params = SamplingParams(max_tokens=24, temperature=0.6, top_k=3, seed=2, logprobs=5, ignore_eos=True)
    widget = Logprobs(engines[0], beside=engines[1])
    raw, processed = (llm.generate("Once there was", params, use_tqdm=False)[0] for llm in engines)
    assert "Above: raw_logprobs. Below: processed_logprobs. The 24 tokens" in place(widget)
    for index, (above, below) in rows(widget).items():
        for output, said in ((raw, above), (processed, below)):
            token_id = output.outputs[0].token_ids[index]
            assert f"logprob {entries(output)[index][token_id].logprob:.4g}" in said
        assert above.count("ruled out") == 0
        assert below.count("ruled out") == 2  # of the five likeliest, top_k left three
    widget.close()


def test_an_engine_and_its_outputs_say_the_same(engines: tuple[LLM, LLM]) -> None:
    params = SamplingParams(max_tokens=20, n=2, seed=4, logprobs=3, prompt_logprobs=2, ignore_eos=True)
    with engines[0].trace.record() as trace:
        (output,) = engines[0].generate("Once there was an owl", params, use_tqdm=False)
    seen, told = Logprobs(trace), Logprobs(output)
    assert told._runs[0].names == seen._runs[0].names
    for number in range(2):
        seen.request.value = told.request.value = number
        generated = [title for title in titles(told) if title.startswith("token ")]
        prompt = [title for title in titles(told) if title.startswith("prompt token")]
        assert len(prompt) == len(output.prompt_token_ids)
        assert "its logprob is not known" in prompt[0]
        for mine, theirs in zip(titles(seen), generated, strict=True):
            lines = [line for line in mine.split("\n")[1:] if not line.startswith("step ")]
            assert [re.sub(r", entropy.*", "", line) for line in lines] == theirs.split("\n")[1:]


def test_a_closed_engine_says_so(engines: tuple[LLM, LLM]) -> None:
    with LLM("zoo/wren-1m", max_num_seqs=2) as llm:
        llm.generate("the owl", SamplingParams(max_tokens=3, logprobs=1), use_tqdm=False)
    assert "The engine is closed; this is its trace." in place(Logprobs(llm))
