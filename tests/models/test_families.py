"""Every family gives the logits of transformers, from the folder that transformers wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.checkpoints import build, expected, rewrite, saved, tokens, torch_threads
from tests.models.dense_attend import DenseAttend, logits
from workbench.models.loading import load_model
from workbench.models.spec import read_spec

TOLERANCE = 1e-4  # float32; logits of these models are a few units large
LENGTH = 40

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama, every head its own keys": ("llama", {"num_key_value_heads": 6}),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, heads wider than hidden": ("llama", {"head_dim": 16}),
    "llama, large eps": ("llama", {"rms_norm_eps": 0.1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 7}),
    "mistral, narrow heads": ("mistral", {"sliding_window": 16, "head_dim": 4}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 with windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, biased": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 8}),
    "qwen3 with windows": (
        "qwen3",
        {
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

FACTORS = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 1.5, 3.0, 6.0]}
ROPES: dict[str, dict[str, Any]] = {
    "another theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, all its numbers": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    "yarn, attention factor given": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.5,
    },
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32, **FACTORS},
    "longrope, factor from the lengths": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        **FACTORS,
    },
}


def assert_same_logits(
    folder: Path, model: Any, length: int, max_positions: int | None = None, **overrides: Any
) -> None:
    spec = read_spec(folder, overrides or None)
    ours = load_model(folder, spec, "cpu", torch.float32, max_positions=max_positions)
    token_ids = tokens(length)
    wanted = expected(model, token_ids)
    assert wanted.abs().max() > 1.0  # logits near 0 would agree with anything
    torch.testing.assert_close(logits(ours, token_ids), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    model_type, settings = FAMILIES[case]
    model = build(model_type, **settings)
    assert_same_logits(saved(model, tmp_path), model, LENGTH)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions_equal_transformers_beyond_the_pretraining(
    rope: str, model_type: str, tmp_path: Path
) -> None:
    """100 positions, the pretraining's were 32 (where the kind knows one)."""
    model = build(model_type, head_dim=8, rope_parameters={"rope_theta": 100.0, **ROPES[rope]})
    assert_same_logits(saved(model, tmp_path), model, 100)


@pytest.mark.parametrize("rope", ROPES)
def test_scaled_positions_equal_transformers_within_the_pretraining(rope: str, tmp_path: Path) -> None:
    model = build("llama", rope_parameters={"rope_theta": 100.0, **ROPES[rope]})
    assert_same_logits(saved(model, tmp_path), model, 30, max_positions=32)


def test_dynamic_scaling_goes_by_the_engine_length(tmp_path: Path) -> None:
    """A sequence that fills an engine longer than the model is turned as transformers turns it, whole."""
    model = build("llama", rope_parameters={"rope_theta": 100.0, "rope_type": "dynamic", "factor": 3.0})
    assert_same_logits(saved(model, tmp_path), model, 200, max_positions=200)


@pytest.mark.parametrize("rope", ["another theta", "linear", "dynamic", "yarn", "longrope", "llama3"])
@pytest.mark.parametrize("kind_name", ["rope_type", "type"])
def test_old_configs_mean_the_same(rope: str, kind_name: str, tmp_path: Path) -> None:
    """rope_theta and rope_scaling on their own, torch_dtype, no layer_types: as written years ago."""
    rope_parameters = {"rope_theta": 100.0, **ROPES[rope]}
    windows = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}
    model = build("qwen2", rope_parameters=rope_parameters, **windows)
    folder = saved(model, tmp_path)
    spec = read_spec(folder)
    scaling = {name: value for name, value in rope_parameters.items() if name != "rope_theta"}
    scaling[kind_name] = scaling.pop("rope_type")
    rewrite(
        folder,
        drop=("rope_parameters", "layer_types", "dtype"),
        rope_theta=100.0,
        rope_scaling=None if rope == "another theta" and kind_name == "type" else scaling,
        torch_dtype="float32",
        **windows,
    )
    if rope == "another theta":
        rewrite(folder, rope_theta=500.0)
    assert read_spec(folder) == spec
    assert_same_logits(folder, model, LENGTH)


def test_the_length_of_the_pretraining_beside_the_rope_settings(tmp_path: Path) -> None:
    """Some checkpoints state it outside rope_parameters, and transformers then goes by that."""
    from transformers import AutoModelForCausalLM

    folder = saved(build("llama", rope_parameters={"rope_theta": 100.0, **ROPES["yarn"]}), tmp_path)
    rewrite(folder, original_max_position_embeddings=64)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert read_spec(folder).rope.original_max_position_embeddings == 64
    assert_same_logits(folder, oracle, 100)


@pytest.mark.parametrize("case", ["llama", "mistral with a window", "qwen2 with windows", "qwen3"])
def test_chunks_add_up_to_the_whole(case: str, tmp_path: Path) -> None:
    model_type, settings = FAMILIES[case]
    folder = saved(build(model_type, **settings), tmp_path)
    model = load_model(folder, read_spec(folder), "cpu", torch.float32)
    whole = logits(model, tokens(LENGTH))
    for chunks in [(13,), (1, 1, 20), (39,)]:
        torch.testing.assert_close(logits(model, tokens(LENGTH), chunks), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 9, 100, 128, 129, 150])
def test_every_batch_size_gives_the_same_logits(length: int, threads: int, tmp_path: Path) -> None:
    """One row, a small batch, a padded one and a large one are multiplied by different kernels."""
    model = build("llama", attention_bias=True, max_position_embeddings=256)
    with torch_threads(threads):
        assert_same_logits(saved(model, tmp_path), model, length)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_bfloat16_is_close_to_float32(model_type: str, tmp_path: Path) -> None:
    model = build(model_type, initializer_range=0.1)
    folder = saved(model, tmp_path)
    ours = load_model(folder, read_spec(folder), "cpu", torch.bfloat16)
    found, wanted = logits(ours, tokens(LENGTH)), expected(model, tokens(LENGTH))
    assert found.dtype == torch.bfloat16
    # 8 bits of mantissa, over 3 layers: errors of a few per cent of the logits' spread, as transformers has.
    theirs = expected(model.bfloat16(), tokens(LENGTH)).float()
    assert (found.float() - wanted).abs().mean() < 1.5 * (theirs - wanted).abs().mean() + 1e-3


def test_embeddings_take_the_place_of_tokens(tmp_path: Path) -> None:
    model = build("llama")
    folder = saved(model, tmp_path)
    ours = load_model(folder, read_spec(folder), "cpu", torch.float32)
    positions = torch.arange(LENGTH)
    table = torch.randn(LENGTH, ours.spec.hidden_size)
    with torch.inference_mode():
        attend = DenseAttend(ours).at(positions)
        hidden = ours.forward(tokens(LENGTH), positions, attend, embeddings=table)
        wanted = model(inputs_embeds=table[None], use_cache=False).logits[0]
        torch.testing.assert_close(ours.logits(hidden), wanted, atol=TOLERANCE, rtol=0)
