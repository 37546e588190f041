"""Adapters through the front door: the tokens and logits of merged weights, whoever shares the batch.

The oracle is transformers with the low-rank products added to its weights, in float64.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.llm import tiny
from tests.lora.adapters import ATTENTION, EVERY, MLP, merged, write_adapter
from tests.models import checkpoints
from workbench import LLM, BeamSearchParams, LoRARequest, SamplingParams
from workbench.sim.replay import replay
from workbench.trace import Trace

FAMILIES = ("llama", "qwen2")
COUNT = 8
NAMES = ("small", "middle", "large")
WHERE = {  # name -> rank, targets, what is special
    "small": (1, EVERY, {}),
    "middle": (8, (*ATTENTION, "embed_tokens", "lm_head"), {"use_rslora": True, "lora_alpha": 4.0}),
    "large": (64, (*MLP, "v_proj", "embed_tokens"), {}),
}


class Home:
    """Base models, adapters and what each makes of a model, made when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._models: dict[tuple[str, str | None], Any] = {}

    def base(self, family: str) -> Path:
        folder = self.root / family / "base"
        if not folder.exists():
            tiny.write_tokenizer(tiny.write_model(family, folder))
        return folder

    def adapter(self, family: str, name: str) -> Path:
        folder = self.root / family / name
        if not folder.exists():
            rank, targets, config = WHERE[name]
            model, seed = tiny.load(self.base(family)), NAMES.index(name)
            write_adapter(folder, model, rank, targets, seed=seed, config=config)
        return folder

    def request(self, family: str, name: str | None) -> LoRARequest | None:
        if name is None:
            return None
        return LoRARequest(name, NAMES.index(name) + 1, str(self.adapter(family, name)))

    def oracle(self, family: str, name: str | None) -> Any:
        key = (family, name)
        if key not in self._models:
            base = self.base(family)
            model = tiny.load(base).double() if name is None else merged(self.adapter(family, name), base)
            self._models[key] = model.eval()
        return self._models[key]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Home(tmp_path_factory.mktemp("adapters"))
    torch.set_num_threads(before)


def open_llm(folder: Path, **settings: Any) -> LLM:
    plain = {"max_model_len": 96, "max_num_seqs": 8, "enable_lora": True, "max_loras": 3, "max_lora_rank": 64}
    return LLM(str(folder), device="cpu", block_size=8, **plain | settings)


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    dice = random.Random(3)
    shared = [dice.randrange(3, tiny.VOCAB) for _ in range(17)]
    return [
        shared + [dice.randrange(3, tiny.VOCAB) for _ in range(1 + 5 * i % longest)] for i in range(count)
    ]


def mixed(count: int, names: Sequence[str | None] = (None, *NAMES)) -> list[str | None]:
    return [names[place % len(names)] for place in range(count)]


def assert_are_of(home: Home, family: str, name: str | None, output: Any, mode: str = "raw_logits") -> None:
    """Each token is the oracle's greedy one, and every logit within 1e-4 of it."""
    tokens = list(output.outputs[0].token_ids)
    rows = tiny.logits(home.oracle(family, name), [*output.prompt_token_ids, *tokens])
    expected = rows[len(output.prompt_token_ids) - 1 : -1]
    assert tokens == expected.argmax(-1).tolist(), name
    for entry, row in zip(output.outputs[0].logprobs, expected, strict=True):
        found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
        torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


LOGITS = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True, logprobs=-1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 16, "enable_prefix_caching": False},
        {"num_gpu_blocks_override": 26, "max_num_batched_tokens": 24},
        {"max_loras": 1, "max_num_batched_tokens": 32},
        {"async_scheduling": True, "max_loras": 2, "max_num_seqs": 3},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}},
    ],
    ids=["whole", "chunked, no cache", "preempted", "one slot", "overlapped, two slots", "speculation"],
)
def test_logits_are_those_of_merged_weights_row_by_row(home: Home, family: str, settings: dict) -> None:
    """One batch of the base model and three adapters, of ranks 1, 8 and 64."""
    names = mixed(8)
    with open_llm(home.base(family), logprobs_mode="raw_logits", **settings) as llm:
        asked = [home.request(family, name) for name in names]
        for _ in range(2):  # the second time, all of it is cached
            outputs = llm.generate(prompts(8), LOGITS, lora_request=asked, use_tqdm=False)
            for name, output, request in zip(names, outputs, asked, strict=True):
                assert_are_of(home, family, name, output)
                assert output.lora_request is request
        if "num_gpu_blocks_override" in settings:
            assert llm.trace.steps.preempted.sum() > 0, "nobody was preempted"
        elif settings.get("enable_prefix_caching", True):
            assert any(output.num_cached_tokens >= 16 for output in outputs)


def test_an_adapter_changes_what_is_said(home: Home) -> None:
    """Or the oracle's agreement would say nothing."""
    with open_llm(home.base("llama")) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        asked = [home.request("llama", name) for name in (None, *NAMES)]
        outputs = llm.generate([prompts(1)[0]] * 4, greedy, lora_request=asked, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 4


def test_the_prefix_cache_keeps_adapters_apart(home: Home) -> None:
    prompt, greedy = prompts(1, 40)[0] * 2, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(home.base("llama")) as llm:
        for _ in range(2):
            found = [
                llm.generate([prompt], greedy, lora_request=home.request("llama", name), use_tqdm=False)[0]
                for name in (None, "small", "large")
            ]
            cached = [output.num_cached_tokens for output in found]
        first = (len(prompt) - 1) // 8 * 8
        assert cached == [first] * 3
        assert llm.remove_lora(1)
        again = llm.generate([prompt], greedy, lora_request=home.request("llama", "small"), use_tqdm=False)
        assert again[0].num_cached_tokens == 0, "it was removed meanwhile: another adapter may have its id"


def test_with_an_fp8_cache_adapters_compute_what_merged_weights_do(home: Home, tmp_path: Path) -> None:
    """But for keys and values that lie between two numbers of eight bits, and are rounded otherwise."""
    fp8 = {"kv_cache_dtype": "fp8", "logprobs_mode": "raw_logits"}
    names = mixed(4, (None, "small"))
    with open_llm(home.base("llama"), max_num_batched_tokens=24, **fp8) as llm:
        asked = [home.request("llama", name) for name in names]
        outputs = llm.generate(prompts(4), LOGITS, lora_request=asked, use_tqdm=False)
        again = llm.generate(prompts(4)[::-1], LOGITS, lora_request=asked[::-1], use_tqdm=False)[::-1]
    for name, prompt, output, cached in zip(names, prompts(4), outputs, again, strict=True):
        assert cached.outputs[0].token_ids == output.outputs[0].token_ids
        assert cached.num_cached_tokens >= 16
        deepcopy(home.oracle("llama", name)).float().save_pretrained(tmp_path / str(name))
        plain = {"device": "cpu", "block_size": 8, "skip_tokenizer_init": True, **fp8}
        with LLM(str(tmp_path / str(name)), **plain) as llm:
            (expected,) = llm.generate([prompt], LOGITS, use_tqdm=False)
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        found, other = (logits_of(each) for each in (output, expected))
        assert (found - other).abs().median() < 1e-4
        assert (found - other).abs().max() < 0.2 * other.std()


def logits_of(output: Any) -> torch.Tensor:
    """[tokens, vocab]"""
    return torch.tensor(
        [[entry[token].logprob for token in range(tiny.VOCAB)] for entry in output.outputs[0].logprobs]
    )


def test_prompt_logprobs_are_those_of_merged_weights(home: Home) -> None:
    names = mixed(4)
    asked = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=-1)
    with open_llm(home.base("qwen2"), max_num_batched_tokens=16) as llm:
        requests = [home.request("qwen2", name) for name in names]
        outputs = llm.generate(prompts(4), asked, lora_request=requests, use_tqdm=False)
    for name, prompt, output in zip(names, prompts(4), outputs, strict=True):
        rows = tiny.logits(home.oracle("qwen2", name), prompt).log_softmax(-1)
        for entry, row in zip(output.prompt_logprobs[1:], rows, strict=False):
            found = torch.tensor([entry[token].logprob for token in range(tiny.VOCAB)]).double()
            torch.testing.assert_close(found, row, rtol=0, atol=1e-4)


def test_the_same_tokens_whatever_shares_the_batch(home: Home) -> None:
    """Sampled ones, alone and among others, in an engine with one slot and in one with three."""
    params = [
        SamplingParams(temperature=0.9, seed=place, max_tokens=COUNT, ignore_eos=True) for place in range(9)
    ]
    asked = [home.request("llama", name) for name in mixed(9)]
    found = []
    for settings in ({}, {"max_loras": 1}, {"max_num_seqs": 1}):
        with open_llm(home.base("llama"), **settings) as llm:
            outputs = llm.generate(prompts(9), params, lora_request=asked, use_tqdm=False)
        found.append([list(output.outputs[0].token_ids) for output in outputs])
    assert found[0] == found[1] == found[2]


def test_beams_streams_chats_and_children_have_their_adapter(home: Home) -> None:
    prompt, request = prompts(1)[0], home.request("llama", "large")
    oracle = home.oracle("llama", "large")
    expected = tiny.greedy(oracle, prompt, 4)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with open_llm(home.base("llama")) as llm:
        streamed = [
            i for out in llm.stream(prompt, greedy, lora_request=request) for i in out.outputs[0].token_ids
        ]
        assert streamed[: len(expected)] == expected
        params = BeamSearchParams(beam_width=1, max_tokens=4, ignore_eos=True)
        (found,) = llm.beam_search([prompt], params, lora_request=request)
        assert found.sequences[0].tokens[len(prompt) :][: len(expected)] == expected
        two = SamplingParams(temperature=0, n=2, max_tokens=4, ignore_eos=True)
        (output,) = llm.generate([prompt], two, lora_request=request, use_tqdm=False)
        assert [list(c.token_ids)[: len(expected)] for c in output.outputs] == [expected] * 2


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_bad_adapter_is_refused_before_its_request_is_queued_and_harms_nobody(
    home: Home, tmp_path: Path
) -> None:
    base = home.base("llama")
    deep = write_adapter(tmp_path / "deep", tiny.load(base), 32, ("q_proj",))
    other = write_adapter(tmp_path / "other", checkpoints.build("llama"), 2, ("q_proj",))
    greedy = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    with open_llm(base, max_lora_rank=8) as llm:
        llm.add_request(prompts(1)[0], greedy, "good", home.request("llama", "small"))
        for path, error, says in (
            (deep, ValueError, "q_proj' has rank 32, and max_lora_rank is 8"),
            (other, ValueError, "'layers.2.self_attn.q_proj'.* trained for this model"),
            (tmp_path / "nowhere", OSError, "no folder"),
        ):
            for ask in (llm.add_lora, lambda r: llm.add_request([5], greedy, None, r)):
                with pytest.raises(error, match=says):
                    ask(LoRARequest("bad", 7, str(path)))
        assert llm.list_loras() == {1}
        while llm.has_unfinished_requests():
            outputs = llm.step().outputs
        expected = tiny.greedy(home.oracle("llama", "small"), prompts(1)[0], COUNT)
        assert list(outputs[0].outputs[0].token_ids)[: len(expected)] == expected


def test_one_id_means_one_adapter(home: Home) -> None:
    with open_llm(home.base("llama")) as llm:
        path = str(home.adapter("llama", "small"))
        assert llm.add_lora(LoRARequest("small", 1, path))
        assert llm.add_lora(LoRARequest("small", 1, path)), "again is no harm"
        with pytest.raises(
            ValueError, match=r"lora_int_id 1 is 'small' of .*, not 'other' of .*remove_lora\(1\)"
        ):
            llm.add_lora(LoRARequest("other", 1, path))
        with pytest.raises(ValueError, match="lora_int_id 1 is 'small'"):
            llm.generate("a", lora_request=LoRARequest("small", 1, "elsewhere"), use_tqdm=False)


def test_an_adapter_in_use_is_not_removed(home: Home) -> None:
    with open_llm(home.base("llama")) as llm:
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        llm.add_request([5, 6, 7], params, lora_request=home.request("llama", "small"))
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"adapter 1 \('small'\) is used by 1 open request: let them end"
            ):
                llm.remove_lora(1)
            llm.step()
        while llm.has_unfinished_requests():
            llm.step()
        assert llm.remove_lora(1)
        assert not llm.remove_lora(1)
        assert llm.list_loras() == set()


def test_weights_that_were_exchanged_are_noticed(home: Home, tmp_path: Path) -> None:
    """They had left the host, and are not what was added."""
    base = home.base("llama")
    paths = [write_adapter(tmp_path / f"{n}", tiny.load(base), 2, seed=n) for n in range(2)]
    asked = [LoRARequest(f"a{n}", n + 1, str(path)) for n, path in enumerate(paths)]
    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(base, max_loras=1) as llm:
        llm.generate([[5], [6]], greedy, lora_request=asked, use_tqdm=False)
        write_adapter(paths[0], tiny.load(base), 4, seed=9)
        bad, good = llm.generate([[5], [6]], greedy, lora_request=asked, use_tqdm=False)
        assert bad.outputs[0].finish_reason == "error"
        assert "have changed since it was added: remove_lora" in bad.outputs[0].stop_reason
        assert good.outputs[0].finish_reason == "length"
        assert llm.remove_lora(1)
        (output,) = llm.generate([[5]], greedy, lora_request=asked[0], use_tqdm=False)
        expected = tiny.greedy(merged(paths[0], base), [5], 2)
        assert list(output.outputs[0].token_ids)[: len(expected)] == expected


def test_without_lora_everything_about_it_says_so(home: Home) -> None:
    with LLM(str(home.base("llama")), device="cpu", max_model_len=32) as llm:
        request = home.request("llama", "small")
        for ask in (
            lambda: llm.add_lora(request),
            lambda: llm.remove_lora(1),
            lambda: llm.list_loras(),
            lambda: llm.pin_lora(1),
            lambda: llm.generate("a", lora_request=request),
        ):
            with pytest.raises(ValueError, match="open the LLM with enable_lora=True"):
                ask()


def test_a_request_for_something_else_is_refused(home: Home) -> None:
    with open_llm(home.base("llama")) as llm:
        with pytest.raises(TypeError, match="lora_request is 'small': use LoRARequest"):
            llm.generate("a", lora_request="small", use_tqdm=False)
        with pytest.raises(ValueError, match="lora_int_id 4 is not known: add_lora it first"):
            llm.pin_lora(4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_loras": 0}, "max_loras is 0: use 1 or more"),
        ({"max_lora_rank": 257}, "max_lora_rank is 257: use 1 to 256"),
        ({"max_lora_rank": 0}, "max_lora_rank is 0"),
        ({"max_loras": 4, "max_cpu_loras": 2}, "max_cpu_loras is 2, less than max_loras 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(home: Home, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LLM(str(home.base("llama")), enable_lora=True, **settings)


def test_threads_add_one_adapter_once(home: Home) -> None:
    with open_llm(home.base("llama")) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        request, found = home.request("llama", "small"), []

        def ask() -> None:
            found.append(llm.generate([[5, 6]], greedy, lora_request=request, use_tqdm=False)[0])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({tuple(output.outputs[0].token_ids) for output in found}) == 1
        assert llm.list_loras() == {1}


def test_the_trace_tells_who_has_which_adapter_and_when_it_came(home: Home) -> None:
    names = mixed(4)
    greedy = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with open_llm(home.base("llama"), max_loras=1) as llm:
        asked = [home.request("llama", name) for name in names]
        llm.generate(prompts(4), greedy, lora_request=asked, use_tqdm=False)
        trace = llm.trace
        assert [name if isinstance(name, str) else None for name in trace.requests.adapter] == names
        by_id = dict(zip(trace.requests.request_id, trace.requests.adapter.fillna(""), strict=True))
        lines = trace.step_requests
        assert lines.adapter.fillna("").tolist() == [by_id[name] for name in lines.request_id]
        kinds = trace.events.kind.value_counts()
    assert (kinds["adapter_loaded"], kinds["adapter_evicted"]) == (3, 2)


def test_a_look_at_the_next_step_changes_nothing_and_says_who_is_let_in(home: Home) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    found = []
    for looks in (False, True):
        with open_llm(home.base("llama"), max_loras=1) as llm:
            for place, name in enumerate(mixed(6)):
                llm.add_request(prompts(6)[place], greedy, str(place), home.request("llama", name))
            steps = []
            while llm.has_unfinished_requests():
                expected = llm.scheduler.preview().num_scheduled_tokens if looks else None
                step = llm.step()
                assert expected in (None, step.num_scheduled_tokens)
                steps.append(step.num_scheduled_tokens)
            found.append(steps)
    assert found[0] == found[1]


def test_a_recording_with_adapters_replays(home: Home) -> None:
    """Also where some of them were there before it began, and others make room."""
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    with open_llm(home.base("llama"), max_loras=2, enable_prefix_caching=False) as llm:
        llm.generate([[5]], greedy, lora_request=home.request("llama", "large"), use_tqdm=False)
        with llm.trace.record() as trace:
            asked = [home.request("llama", name) for name in mixed(8)]
            llm.generate(prompts(8), greedy, lora_request=asked, use_tqdm=False)
    assert {"adapter_loaded", "adapter_evicted"} <= set(trace.events.kind)
    again = replay(trace)
    assert str(Trace.diff(trace, again)) == "no difference: both runs decided alike"
    assert again.requests.adapter.fillna("").tolist() == trace.requests.adapter.fillna("").tolist()
    wide = replay(trace, max_loras=3)
    assert len(wide.steps) < len(trace.steps), "nobody waits for a slot"
