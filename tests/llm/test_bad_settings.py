"""Bad settings and folders, and engines that are closed: an error that names the value and the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.llm.conftest import Models, Open
from workbench import LLM, SamplingParams
from workbench.prompts import read_prompt

TALK = [{"role": "user", "content": "hi"}]
SHORT = SamplingParams(temperature=0, max_tokens=2)


# --- settings -----------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict, type[Exception], str]] = {
    "a typo": ({"enforce_eagre": True}, TypeError, "no 'enforce_eagre': did you mean 'enforce_eager'"),
    "swap_space": ({"swap_space": 4}, TypeError, "'swap_space': preempted requests are recomputed"),
    "best_of": ({"best_of": 2}, TypeError, r"'best_of': use SamplingParams\(n="),
    "a sampling option": ({"temperature": 0}, TypeError, r"'temperature': .*SamplingParams\(temperature="),
    "quantization": ({"quantization": "awq"}, TypeError, "not available yet"),
    "several devices": ({"tensor_parallel_size": 2}, ValueError, "tensor_parallel_size=2.*not available yet"),
    "block_size 0": ({"block_size": 0}, ValueError, "block_size is 0: use 1 or more"),
    "block_size True": ({"block_size": True}, TypeError, "block_size is True"),
    "a fractional block": ({"block_size": 1.5}, TypeError, "block_size is 1.5"),
    "blocks beyond memory": (
        {"block_size": 10**9},
        ValueError,
        r"there are 0: raise kv_cache_memory_bytes to \d+",
    ),
    "no length": ({"max_model_len": 1}, ValueError, "max_model_len is 1: use 2 or more"),
    "a length beyond the model": (
        {"max_model_len": 2049},
        ValueError,
        "2049.*2048 positions: lower it.*hf_over",
    ),
    "a length in words": ({"max_model_len": "1k"}, TypeError, "max_model_len is '1k'"),
    "no rows": ({"max_num_seqs": 0}, ValueError, "max_num_seqs is 0"),
    "a budget below the rows": (
        {"max_num_seqs": 8, "max_num_batched_tokens": 4},
        ValueError,
        "max_num_batched_tokens is 4, less than max_num_seqs 8.*raise the one or lower the other",
    ),
    "a tiny cache": (
        {"kv_cache_memory_bytes": 100},
        ValueError,
        r"needs 128 KV blocks .* are 0: raise kv_cache_m",
    ),
    "a small cache": (
        {"kv_cache_memory_bytes": 30_000, "max_model_len": 512},
        ValueError,
        r"512 needs 32 KV blocks .* are 7: raise kv_cache_memory_bytes to 131072, .*max_model_len to 112",
    ),
    "few blocks": (
        {"num_gpu_blocks_override": 3, "max_model_len": 100},
        ValueError,
        "needs 7 KV blocks and there are 3: raise num_gpu_blocks_override to 7, or lower max_model_len to 48",
    ),
    "no blocks": ({"num_gpu_blocks_override": 0}, ValueError, "num_gpu_blocks_override is 0"),
    "blocks beyond all memory": (
        {"num_gpu_blocks_override": 10**14},
        ValueError,
        "no memory for 100000000000000 KV blocks.*lower num_gpu_blocks_override",
    ),
    "negative memory": ({"kv_cache_memory_bytes": -1}, ValueError, "kv_cache_memory_bytes is -1"),
    "memory in words": ({"kv_cache_memory_bytes": "1G"}, TypeError, "kv_cache_memory_bytes is '1G'"),
    "more than all memory": ({"gpu_memory_utilization": 1.5}, ValueError, "gpu_memory_utilization is 1.5"),
    "a negative seed": ({"seed": -1}, ValueError, "seed is -1"),
    "a huge seed": ({"seed": 2**64}, ValueError, r"seed is \d+: use less than 2\*\*64"),
    "an unknown dtype": ({"dtype": "int8"}, ValueError, "dtype='int8' is unknown: use 'auto'"),
    "an unknown device": ({"device": "tpu"}, ValueError, "device='tpu' is unknown: use 'auto', 'cpu'"),
    "no device": ({"device": None}, ValueError, "device=None is unknown"),
    "an unknown policy": (
        {"scheduling_policy": "lifo"},
        ValueError,
        "'lifo' is unknown: use 'fcfs', 'priority'",
    ),
    "an unknown hash": ({"prefix_caching_hash_algo": "md5"}, ValueError, "'md5' is unknown: use 'sha256'"),
    "an unknown mode": (
        {"logprobs_mode": "x"},
        ValueError,
        "logprobs_mode='x' is unknown: use one of raw_log",
    ),
    "an unknown format": (
        {"load_format": "pt"},
        ValueError,
        "load_format is 'pt': use auto, safetensors, dummy",
    ),
    "a switch in words": (
        {"enable_prefix_caching": "no"},
        TypeError,
        "enable_prefix_caching is 'no': use True or",
    ),
    "overlap in words": ({"async_scheduling": "yes"}, TypeError, "async_scheduling is 'yes'"),
    "no tokenizer there": ({"tokenizer": "/nowhere"}, ValueError, "no tokenizer .*/nowhere: name another"),
    "a tokenizer of another kind": ({"tokenizer": 3}, TypeError, "tokenizer is 3"),
    "overrides of another kind": ({"hf_overrides": 5}, TypeError, "hf_overrides is 5: use a dict"),
    "an override nobody knows": (
        {"hf_overrides": {"hiden_size": 8}},
        TypeError,
        "'hiden_size': did you mean",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_bad_setting_is_named(models: Models, case: str) -> None:
    settings, error, message = SETTINGS[case]
    with pytest.raises(error, match=message):
        LLM(str(models.folder()), **{"device": "cpu", **settings})


def test_there_is_only_one_engine(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V1", "0")
    with pytest.raises(ValueError, match="VLLM_USE_V1=0 .* only one here: unset"):
        LLM(str(models.folder()))
    monkeypatch.setenv("VLLM_USE_V1", "1")
    LLM(str(models.folder()), device="cpu", max_model_len=64).close()


def test_numbers_of_numpy_and_paths_are_settings_like_others(models: Models) -> None:
    settings = {"max_model_len": np.int64(64), "max_num_seqs": np.int32(4), "block_size": np.int16(8)}
    with LLM(models.folder(), device="cpu", num_gpu_blocks_override=np.int64(16), **settings) as llm:
        assert json.loads(json.dumps(llm.config.to_dict()))["max_model_len"] == 64
        assert llm.config.model == str(models.folder())


# --- what is on the disk ------------------------------------------------------------------------------


def changed(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def written(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


FOLDERS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "no config": (without("config.json"), OSError, "no config.json: give a Hugging Face model folder"),
    "a broken config": (written("config.json", "{"), ValueError, "config.json is not JSON"),
    "another architecture": (
        changed(architectures=["GPT2LMHeadModel"]),
        ValueError,
        "GPT2LMHeadModel is not supported: use a model of LlamaForCausalLM, Mistral.*Qwen2.*Qwen3",
    ),
    "another shape": (
        changed(intermediate_size=64),
        ValueError,
        r"'model.layers.0.mlp.gate_proj.weight' has shape \[48, 32\], config.json asks for \[64, 32\]",
    ),
    "more layers than there are": (changed(num_hidden_layers=9), ValueError, "no tensor 'model.layers.2"),
    "no weights": (without("model.safetensors"), OSError, 'neither model.safetensors .*load_format="dummy"'),
    "half of the weights": (
        truncated,
        ValueError,
        r"model.safetensors has 5000 bytes, .* \d+: download it again",
    ),
    "broken defaults": (
        written("generation_config.json", "{"),
        ValueError,
        "generation_config.json is not JSON",
    ),
    "defaults of another kind": (written("generation_config.json", "[]"), ValueError, "holds a list"),
    "defaults out of range": (
        written("generation_config.json", '{"temperature": -3}'),
        ValueError,
        "generation_config.json: temperature is -3.*correct it, or pass sampling_params",
    ),
    "no tokenizer": (
        without("tokenizer.json", "tokenizer_config.json"),
        ValueError,
        r"no tokenizer .*tokenizer=.*skip_tokenizer_init=True",
    ),
    "a broken tokenizer": (written("tokenizer.json", "{"), ValueError, "no tokenizer could be loaded"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_bad_folder_is_named(models: Models, tmp_path: Path, case: str) -> None:
    spoil, error, message = FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(models.folder(), folder)
    spoil(folder)
    with (
        pytest.raises(error, match=message) as caught,
        LLM(str(folder), device="cpu", max_model_len=64) as llm,
    ):
        llm.generate([[5]], use_tqdm=False)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("/no/where", OSError, "no folder at /no/where: check the path"),
        ("zoo/phoenix", ValueError, "no embedded model 'phoenix': choose one of"),
        ("", ValueError, "model is ''"),
        (5, TypeError, "model is 5"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LLM(model)


def test_an_end_token_beyond_the_vocabulary_is_one_that_never_comes(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models.folder(), folder)
    written("generation_config.json", '{"eos_token_id": [0, 99999]}')(folder)
    with LLM(str(folder), device="cpu", max_model_len=64) as llm:
        params = SamplingParams(temperature=0, max_tokens=4, min_tokens=4)
        (output,) = llm.generate([[5]], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"


def test_without_a_tokenizer_tokens_are_taken_and_texts_refused(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models.folder(), folder)
    without("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")(folder)
    with LLM(str(folder), device="cpu", max_model_len=64, skip_tokenizer_init=True) as llm:
        (output,) = llm.generate([[5, 6]], SamplingParams(logprobs=1, max_tokens=3), use_tqdm=False)
        assert output.outputs[0].text == ""
        assert {value.decoded_token for entry in output.outputs[0].logprobs for value in entry.values()} == {
            None
        }
        for call, message in (
            (lambda: llm.generate("abc"), "no tokenizer .*pass prompt_token_ids"),
            (
                lambda: llm.generate([[5]], SamplingParams(stop="a")),
                "stop strings need a tokenizer.*stop_token_ids",
            ),
            (lambda: llm.chat(TALK), "no tokenizer .*pass token ids"),
            (llm.get_tokenizer, "no tokenizer"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


def test_an_empty_text_is_refused_though_a_tokenizer_would_begin_it() -> None:
    class Beginning:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [1, *text.encode()] if add_special_tokens else [*text.encode()]

    assert read_prompt("a", Beginning()).token_ids.tolist() == [1, 97]
    with pytest.raises(ValueError, match="the prompt is empty"):
        read_prompt("", Beginning())


# --- a closed engine, and how an open one looks -------------------------------------------------------


def test_a_closed_engine_says_so(open_llm: Open) -> None:
    llm = open_llm()
    llm.add_request("abc", SHORT)
    llm.close()
    llm.close()
    for call in (
        lambda: llm.generate("a"),
        lambda: llm.stream("a"),
        lambda: llm.add_request("a"),
        lambda: llm.chat(TALK),
        lambda: llm.generate("a", SHORT),
        lambda: llm.stream("a", SHORT),
        lambda: llm.astream("a", SHORT),
        lambda: llm.add_request("a", SHORT),
        llm.step,
        llm.get_tokenizer,
        llm.get_metrics,
        llm.reset_prefix_cache,
        llm.get_default_sampling_params,
    ):
        with pytest.raises(RuntimeError, match="closed: make a new one"):
            call()
    assert not llm.has_unfinished_requests()
    assert repr(llm).endswith("closed)")
    assert llm.trace.requests["finish_reason"].tolist() == ["abort"]


def test_a_repr_is_short_and_shows_model_device_blocks_and_budget(open_llm: Open) -> None:
    llm = open_llm(num_gpu_blocks_override=100, max_num_batched_tokens=512)
    shown = repr(llm)
    assert len(shown) < 250
    assert "\n" not in shown
    for part in (llm.config.model, "CPU", "100 blocks of 16", "budget 512"):
        assert part in shown
