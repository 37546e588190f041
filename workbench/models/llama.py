"""Llama: the plain decoder. Biases, where a checkpoint has them, are on all of attention or of the MLP."""

from __future__ import annotations

from workbench.models.config_file import ConfigFile
from workbench.models.dense import COMMON_DEFAULTS, dense_spec
from workbench.models.spec import ModelSpec


def spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Llama config."""
    config = config.over(
        {**COMMON_DEFAULTS, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
    )
    attention_bias = config.flag("attention_bias")
    return dense_spec(
        config,
        "LlamaForCausalLM",
        windows=(None,) * config.size("num_hidden_layers"),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias"),
    )
