"""Mistral: Llama without biases, with one sliding window for all layers (null: none)."""

from __future__ import annotations

from workbench.models.config_file import ConfigFile
from workbench.models.dense import COMMON_DEFAULTS, dense_spec
from workbench.models.spec import ModelSpec


def spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Mistral config. `layer_types`, if there, has no effect, as in transformers."""
    config = config.over(
        {
            **COMMON_DEFAULTS,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
    )
    window = None if config.values["sliding_window"] is None else config.size("sliding_window")
    return dense_spec(config, "MistralForCausalLM", windows=(window,) * config.size("num_hidden_layers"))
