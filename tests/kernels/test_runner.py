"""The kernels' runner gives the tokens of transformers, however a step is made up.

Through the interpreter on a CPU, where everything but the graphs runs; compiled, with graphs, on a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.engines import open_llm, prompts
from tests.llm import tiny
from tests.llm.asking import is_rank
from tests.llm.float64_sampler import OPTIONS, processed, spellings
from workbench import SamplingParams, StructuredOutputsParams
from workbench.models import backend
from workbench.runtime import device_batch, graphs, scoring
from workbench.runtime.graphs import StepGraphs

pytestmark = pytest.mark.usefixtures("kernels_everywhere")

COUNT = 3
FLOAT = 4  # bytes


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {"async_scheduling": False}),
        ("qwen2", {"async_scheduling": True, "max_num_batched_tokens": 16}),  # two KV groups
        ("mistral", {"async_scheduling": True, "num_gpu_blocks_override": 20}),
    ],
    ids=["synchronous", "overlapped, chunked", "overlapped, tight"],
)
def test_greedy_tokens_equal_transformers(folders: dict[str, Path], family: str, settings: dict) -> None:
    oracle = tiny.load(folders[family])
    with open_llm(folders[family], **settings) as llm:
        params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        outputs = llm.generate(prompts(4), params, use_tqdm=False)
    for prompt, output in zip(prompts(4), outputs, strict=True):
        expected = tiny.greedy(oracle, prompt, COUNT)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen3", {"kv_cache_dtype": "fp8", "calculate_kv_scales": True}),
        ("qwen2", {"kv_cache_dtype": "fp8_per_token_head", "max_num_batched_tokens": 16}),
    ],
    ids=["scales of the first step", "scales of each head, chunked"],
)
def test_an_fp8_cache_holds_and_says_what_plain_torch_does(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, settings: dict
) -> None:
    """Overlapped, so that a step is launched behind the one that finds the scales before that is done."""
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(backend, "has_kernels", lambda device, there=kernels: there)
        with open_llm(folders[family], async_scheduling=True, **settings) as llm:
            params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=2)
            outputs = llm.generate(prompts(4), params, use_tqdm=False)
            scales = [llm._parts.store.scales(layer).float().cpu() for layer in range(2)]
        found.append((scales, [(list(o.outputs[0].token_ids), o.outputs[0].logprobs) for o in outputs]))
    (scales, answers), (expected_scales, expected) = found
    assert "calculate_kv_scales" not in settings or list(map(torch.Tensor.tolist, scales)) == list(
        map(torch.Tensor.tolist, expected_scales)
    )
    for (ids, lines), (expected_ids, expected_lines) in zip(answers, expected, strict=True):
        assert ids == expected_ids
        for line, expected_line in zip(lines, expected_lines, strict=True):
            for token, value in line.items():
                # A number near the middle of two may be rounded either way, and move a logit by as much.
                assert value.logprob == pytest.approx(expected_line[token].logprob, abs=5e-3)


def test_a_graph_of_more_lines_than_the_batch_and_a_shared_prefix_change_no_token(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "ladder", lambda most: [3, most])
    monkeypatch.setattr(device_batch, "SHARED_BLOCKS", 1)
    monkeypatch.setattr(device_batch, "SHARING_ROWS", 2)
    sizes: list[tuple[int, bool]] = []
    pair = StepGraphs.pair

    def watched(self: StepGraphs, form: graphs.Form) -> graphs.Pair:
        sizes.append((form.lines, form.sharing))
        return pair(self, form)

    oracle = tiny.load(folders["llama"])
    with open_llm(folders["llama"], async_scheduling=False) as llm:  # whoever ends has left by the next step
        monkeypatch.setattr(StepGraphs, "pair", watched)
        lengths = [2, 3, 4, 4]
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
        outputs = llm.generate(prompts(4), params, use_tqdm=False)
    assert (4, True) in sizes, "four rows that share blocks"
    assert (3, True) in sizes, "two rows in a graph of three lines"
    for prompt, output, length in zip(prompts(4), outputs, lengths, strict=True):
        expected = tiny.greedy(oracle, prompt, length)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


def test_chunks_in_graphs_of_more_tokens_and_lines_change_no_token(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts whole and in part, and decodes beside them."""
    monkeypatch.setattr(graphs, "CHUNKED", 24)
    forms: list[graphs.Form] = []
    pair = StepGraphs.pair

    def watched(self: StepGraphs, form: graphs.Form) -> graphs.Pair:
        forms.append(form)
        return pair(self, form)

    oracle = tiny.load(folders["llama"])
    with open_llm(folders["llama"], max_num_batched_tokens=20, max_num_seqs=2) as llm:
        monkeypatch.setattr(StepGraphs, "pair", watched)
        wanted = [*prompts(2), [5, 6, 7, 5, 6, 7, 5, 6]]
        params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 5, 3)]
        with llm.trace.record() as trace:
            outputs = llm.generate(wanted, params, use_tqdm=False)
    for prompt, output in zip(wanted, outputs, strict=True):
        expected = tiny.greedy(oracle, prompt, 5)[: len(output.outputs[0].token_ids)]
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected
    steps = trace.steps
    assert len(forms) == len(steps), "every step has a graph"
    assert {form.tokens for form in forms if form.most > 3} == {16}, "of 8 to 15 tokens"
    assert ((steps.prefill > 0) & (steps.decode > 0)).any()


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
def test_sampled_tokens_and_logprobs_are_those_of_plain_torch(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Same seeds, same draws: temperature, cut-offs, penalties, bias, stops and logprobs in one batch."""
    common = {"max_tokens": COUNT, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.8, seed=1, logprobs=2, **common),
        SamplingParams(temperature=1.0, top_p=0.9, top_k=20, seed=2, logprobs=3, **common),
        SamplingParams(
            temperature=0.7, min_p=0.05, presence_penalty=1.5, seed=3, logprob_token_ids=[7, 250], **common
        ),
        SamplingParams(
            temperature=0.9, repetition_penalty=1.3, logit_bias={7: 2.0}, seed=4, logprobs=-1, **common
        ),
        SamplingParams(temperature=1.2, allowed_token_ids=list(range(5, 60)), seed=5, logprobs=1, **common),
        SamplingParams(
            temperature=1.5, min_tokens=3, stop_token_ids=list(range(3, 200)), seed=6, max_tokens=9
        ),
    ]
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(backend, "has_kernels", lambda device, there=kernels: there)
        # Rows are given to others as requests end, and what they ask for goes with them.
        with open_llm(folders["llama"], logprobs_mode=mode, max_num_seqs=3) as llm:
            outputs = llm.generate(prompts(6), params, use_tqdm=False)
        found.append([(list(o.outputs[0].token_ids), o.outputs[0].logprobs) for o in outputs])
    for (ids, logprobs), (expected, expected_logprobs) in zip(*found, strict=True):
        assert ids == expected
        assert (logprobs is None) == (expected_logprobs is None)
        for line, expected_line in zip(logprobs or (), expected_logprobs or (), strict=True):
            for token, value in line.items():
                if token not in expected_line:  # cut off: one of many with no probability at all
                    assert value.logprob == float("-inf")
                    continue
                assert value.logprob == pytest.approx(expected_line[token].logprob, abs=1e-4)
                assert value.rank == expected_line[token].rank


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("qwen2", {"async_scheduling": True, "max_num_batched_tokens": 16})],
    ids=["whole", "overlapped, chunked"],
)
def test_prompt_logprobs_are_those_of_transformers(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, settings: dict
) -> None:
    monkeypatch.setattr(scoring, "SLICE_BYTES", 7 * FLOAT * tiny.VOCAB)
    oracle = tiny.load(folders[family])
    wants = [2, -1, None, 0]
    asked = [SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=want) for want in wants]
    with open_llm(folders[family], **settings) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts(4), asked, use_tqdm=False)
            for prompt, want, output in zip(prompts(4), wants, outputs, strict=True):
                if want is None:
                    assert output.prompt_logprobs is None
                    continue
                assert output.prompt_logprobs[0] is None
                rows = tiny.logits(oracle, prompt).double().log_softmax(-1)
                assert len(output.prompt_logprobs) == len(rows)
                for token, entry, row in zip(prompt[1:], output.prompt_logprobs[1:], rows, strict=False):
                    assert set(entry) == {token, *row.topk(tiny.VOCAB if want < 0 else want).indices.tolist()}
                    for token_id, value in entry.items():
                        assert value.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
                        assert is_rank(value.rank, row, token_id)


def test_what_is_sampled_from_is_what_a_float64_reference_says(folders: dict[str, Path]) -> None:
    """Every processor alone and all together, rows given to others as requests end."""
    folder = tiny.write_tokenizer(folders["llama"])
    oracle = tiny.load(folder)
    given = prompts(4)
    params = [
        SamplingParams(**{"seed": 5, "max_tokens": 4, "logprobs": -1} | options)
        for options in OPTIONS.values()
    ]
    settings = {"logprobs_mode": "processed_logprobs", "skip_tokenizer_init": False, "async_scheduling": True}
    with open_llm(folder, max_num_seqs=3, **settings) as llm:
        asked = [given[place % 4] for place in range(len(params))]
        outputs = llm.generate(asked, params, use_tqdm=False)
        tokenizer = llm.get_tokenizer()
    for prompt, own, output in zip(asked, params, outputs, strict=True):
        tokens, words = list(output.outputs[0].token_ids), spellings(tokenizer, own.bad_words or [])
        rows = tiny.logits(oracle, [*prompt, *tokens])[len(prompt) - 1 : -1]
        for place, (entry, row) in enumerate(zip(output.outputs[0].logprobs, rows, strict=True)):
            expected = processed(row, own, prompt, tokens[:place], words, tiny.EOS).log_softmax(-1)
            found = torch.tensor([entry[token_id].logprob for token_id in range(tiny.VOCAB)]).double()
            assert torch.equal(found.isneginf(), expected.isneginf()), own
            kept = ~expected.isneginf()
            torch.testing.assert_close(found[kept], expected[kept], rtol=0, atol=1e-4)


def test_bad_words_hold_back_the_end_of_what_was_just_generated(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tokens are allowed, so that words of several tokens come up all the time; both runners agree."""
    folder = tiny.write_tokenizer(folders["llama"])
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(backend, "has_kernels", lambda device, there=kernels: there)
        with open_llm(folder, skip_tokenizer_init=False, max_num_seqs=3, async_scheduling=True) as llm:
            ids = [llm.get_tokenizer().encode(word) for word in (" sang", " bird", " tree")]
            pieces = sorted({i for word in ids for i in word})
            common = {
                "allowed_token_ids": pieces, "max_tokens": 12, "temperature": 1.4, "ignore_eos": True
            }  # fmt: skip
            params = [
                SamplingParams(seed=place, bad_words=words, **common)
                for place, words in enumerate(
                    [["sang bird"], None, ["bird", "sang tree"], ["tree bird sang"]]
                )
            ]
            outputs = llm.generate(prompts(4), params, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
        for own, output in zip(params, outputs, strict=True):
            assert not any(word in output.outputs[0].text for word in own.bad_words or ())
    assert found[0] == found[1]


def test_constrained_tokens_are_those_of_plain_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks beside penalties, cut-offs and logprobs, in rows that change hands, overlapped and not."""
    folder = tiny.write_tokenizer(tiny.write_model("llama", tmp_path / "model"))

    def constrained(seed: int, **options) -> SamplingParams:
        constraint = StructuredOutputsParams(regex="[a-c]{2}[0-9]x" if seed % 2 else "(to|the) [a-z]{2}")
        return SamplingParams(seed=seed, max_tokens=4, structured_outputs=constraint, **options)

    params = [
        constrained(1, temperature=0),
        SamplingParams(temperature=0.8, seed=2, max_tokens=COUNT),
        constrained(3, logprobs=2),
        constrained(4, top_k=3, repetition_penalty=1.3, logit_bias={7: 2.0}),
        constrained(5, presence_penalty=1.0),
    ]
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(backend, "has_kernels", lambda device, there=kernels: there)
        settings = {"max_num_seqs": 3, "skip_tokenizer_init": False, "async_scheduling": kernels}
        with open_llm(folder, logprobs_mode="processed_logprobs", **settings) as llm:
            outputs = llm.generate(prompts(5), params, use_tqdm=False)
        found.append([(list(o.outputs[0].token_ids), o.outputs[0].finish_reason) for o in outputs])
    assert found[0] == found[1]
