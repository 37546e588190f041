"""Qwen3: Qwen2 with a norm on every head of q and k instead of the biases, and a head_dim of its own."""

from __future__ import annotations

from workbench.models.config_file import ConfigFile
from workbench.models.dense import dense_spec
from workbench.models.qwen2 import QWEN_DEFAULTS, qwen_windows
from workbench.models.spec import ModelSpec


def spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Qwen3 config."""
    config = config.over({**QWEN_DEFAULTS, "head_dim": 128})
    attention_bias = config.flag("attention_bias")
    return dense_spec(
        config,
        "Qwen3ForCausalLM",
        windows=qwen_windows(config),
        qkv_bias=attention_bias,
        o_bias=attention_bias,
        qk_norm=True,
    )
