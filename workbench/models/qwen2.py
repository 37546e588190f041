"""Qwen2: biases on q, k and v only; the layers from max_window_layers on may have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from workbench.models.config_file import ConfigFile
from workbench.models.dense import COMMON_DEFAULTS, dense_spec
from workbench.models.spec import ModelSpec

QWEN_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        **COMMON_DEFAULTS,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
)


def spec(config: ConfigFile) -> ModelSpec:
    """The spec of a Qwen2 config."""
    config = config.over(QWEN_DEFAULTS)
    return dense_spec(config, "Qwen2ForCausalLM", windows=qwen_windows(config), qkv_bias=True)


def qwen_windows(config: ConfigFile) -> tuple[int | None, ...]:
    """[num_layers]; the window of each layer, from `layer_types` or, in older configs, from a layer on."""
    num_layers = config.size("num_hidden_layers")
    used = config.flag("use_sliding_window") and config.values["sliding_window"] is not None
    window = config.size("sliding_window") if used else None
    kinds = config.values.get("layer_types")
    if kinds is None:
        first = config.values["max_window_layers"] or 0
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if len(kinds) != num_layers:
        raise ValueError(
            f"{config.path}: layer_types has {len(kinds)} entries for {num_layers} layers: give one for each"
        )
    return tuple(_window(config, kind, window) for kind in kinds)


def _window(config: ConfigFile, kind: str, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise ValueError(
            f"{config.path}: layer type {kind!r} is not supported: use full_attention or sliding_attention"
        )
    if window is None:
        raise ValueError(
            f"{config.path}: layer_types has sliding_attention, but no window is set: "
            "set use_sliding_window and sliding_window, or make the layer full_attention"
        )
    return window
