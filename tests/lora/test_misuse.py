"""Adapters that cannot be, and calls that cannot be made: refused by name, and nobody else is harmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.llm import tiny
from tests.lora.adapters import merged, write_adapter
from tests.lora.home import (
    COUNT,
    Home,
    open_llm,
    prompts,
)
from tests.models import checkpoints
from workbench import LLM, LoRARequest, SamplingParams


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
