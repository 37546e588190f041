"""config.json is read as transformers reads it; what cannot be used is refused with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.models.checkpoints import SIZES, rewrite
from workbench.models.spec import ModelSpec, read_spec


def written(folder: Path, **values: Any) -> Path:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, **values}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(folder: Path, overrides: dict[str, Any] | None = None, **values: Any) -> ModelSpec:
    return read_spec(written(folder, **values), overrides)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_absent_values_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    """A config.json of nothing but sizes: everything else comes from the family's defaults."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {name: SIZES[name] for name in names} | {"num_attention_heads": 32, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **sizes}))
    spec, config = read_spec(tmp_path), AutoConfig.from_pretrained(tmp_path)
    assert spec.num_kv_heads == config.num_key_value_heads
    assert spec.max_position_embeddings == config.max_position_embeddings
    assert spec.head_dim == (getattr(config, "head_dim", None) or 2)
    assert spec.rms_norm_eps == config.rms_norm_eps
    assert spec.rope.theta == config.rope_parameters["rope_theta"]
    assert spec.tie_word_embeddings == config.tie_word_embeddings
    assert spec.bos_token_id == config.bos_token_id
    assert spec.eos_token_ids == (() if config.eos_token_id is None else (config.eos_token_id,))
    assert set(spec.windows) == {config.sliding_window if model_type == "mistral" else None}


@pytest.mark.parametrize(
    ("config", "generation", "ids"),
    [
        ({"eos_token_id": 5}, None, (5,)),
        ({"eos_token_id": [5, 6, 5]}, None, (5, 6)),
        ({"eos_token_id": None}, None, ()),
        ({}, None, (2,)),
        ({"eos_token_id": 5}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({"eos_token_id": 5}, {"eos_token_id": None}, (5,)),
        ({"eos_token_id": 5}, {"temperature": 0.7}, (5,)),
    ],
)
def test_end_tokens_are_those_of_generate(
    config: dict[str, Any], generation: dict[str, Any] | None, ids: tuple[int, ...], tmp_path: Path
) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read(tmp_path, **config).eos_token_ids == ids
    assert read(tmp_path, {"eos_token_id": 90}, **config).eos_token_ids == (90,)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_dtype_under_either_name(values: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    assert read(tmp_path, **values).dtype == dtype


def test_a_config_without_dtype_has_that_of_the_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"any": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert read(tmp_path).dtype == "bfloat16"


class TestOverrides:
    def test_they_replace_values(self, tmp_path: Path) -> None:
        spec = read(tmp_path, {"max_position_embeddings": 512, "tie_word_embeddings": True})
        assert (spec.max_position_embeddings, spec.tie_word_embeddings) == (512, True)

    @pytest.mark.parametrize("stored", ["new", "old"])
    @pytest.mark.parametrize("given", ["rope_parameters", "rope_scaling"])
    def test_a_scaling_keeps_the_theta_of_the_weights(self, stored: str, given: str, tmp_path: Path) -> None:
        values: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
        if stored == "old":
            values = {"rope_theta": 77.0, "rope_scaling": {"type": "dynamic", "factor": 9.0}}
        spec = read(tmp_path, {given: {"rope_type": "linear", "factor": 2.0}}, **values)
        assert (spec.rope.kind, spec.rope.factor, spec.rope.theta) == ("linear", 2.0, 77.0)

    def test_theta_alone(self, tmp_path: Path) -> None:
        values = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 77.0}}
        spec = read(tmp_path, {"rope_theta": 99.0}, **values)
        assert (spec.rope.kind, spec.rope.theta) == ("linear", 99.0)

    def test_an_unknown_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="no 'hidden_sise': did you mean 'hidden_size'"):
            read(tmp_path, {"hidden_sise": 3})

    def test_what_is_no_dict_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="hf_overrides is .*use a dict"):
            read_spec(written(tmp_path), ["hidden_size"])  # type: ignore[arg-type]


SCALINGS: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "su"}, "rope_type 'su' is not supported: use default, linear"),
    ({"rope_type": "linear"}, "factor None: use a number greater than 0"),
    ({"rope_type": "dynamic", "factor": "2"}, "factor '2'"),
    ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor None"),
    ({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 4}, "long_factor of None: use 4"),
    (
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 3, "long_factor": [1.0] * 4},
        "short_factor of 3 values: use 4",
    ),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
    ({"full_attention": {"rope_type": "default"}}, "differ from layer to layer"),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"architectures": ["GPT2LMHeadModel"]},
        "GPT2LMHeadModel is not supported.*LlamaForCausalLM.*Qwen3ForCaus",
    ),
    ({"architectures": None, "model_type": "gpt2"}, "gpt2 is not supported.*MistralForCausalLM"),
    ({"architectures": [], "model_type": None}, "no architecture.*Qwen2ForCausalLM"),
    ({"hidden_size": None}, "has no hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0: use 1 or more"),
    ({"vocab_size": "many"}, "vocab_size is 'many': use an integer"),
    ({"num_key_value_heads": 4}, "6 attention heads cannot share 4 key-value heads"),
    ({"head_dim": 7}, "head_dim is 7.*even"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ({"attention_bias": "yes"}, "attention_bias is 'yes': use true or false"),
    ({"quantization_config": {"bits": 4}}, "quantized weights are not supported"),
    ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported: use float32, bfloat16"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"rope_scaling": 4}, "the rope settings are 4"),
    *(({"rope_parameters": scaling}, match) for scaling, match in SCALINGS),
]


@pytest.mark.parametrize(("values", "match"), REFUSED, ids=[match[:40] for _, match in REFUSED])
def test_what_cannot_be_used_is_refused(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        read(tmp_path, **values)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"layer_types": ["full_attention"] * 2}, "layer_types has 2 entries for 3 layers"),
        ({"layer_types": ["full_attention"] * 2 + ["chunked_attention"]}, "'chunked_attention' is not supp"),
        ({"layer_types": ["sliding_attention"] * 3}, "no window is set: set use_sliding_window"),
    ],
)
def test_layer_types_have_to_make_sense(values: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        read(tmp_path, architectures=["Qwen2ForCausalLM"], **values)


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_config_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json .*download it again"):
        read_spec(tmp_path)


def test_rewriting_nothing_changes_nothing(tmp_path: Path) -> None:
    spec = read(tmp_path)
    assert read_spec(rewrite(tmp_path)) == spec
