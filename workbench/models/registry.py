"""Which families are supported, by the name their config.json gives.

Knows where each one lives, and imports only the one asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import MappingProxyType
from typing import cast

from workbench.models.config_file import ConfigFile
from workbench.models.spec import ModelSpec

_MODULES = MappingProxyType(
    {
        "LlamaForCausalLM": "workbench.models.llama",
        "MistralForCausalLM": "workbench.models.mistral",
        "Qwen2ForCausalLM": "workbench.models.qwen2",
        "Qwen3ForCausalLM": "workbench.models.qwen3",
    }
)
# A config saved without a model names no architecture, only its type.
_MODEL_TYPES = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)

SUPPORTED = tuple(_MODULES)


def family(config: ConfigFile) -> Callable[[ConfigFile], ModelSpec]:
    """The function that reads this config; ValueError, with the list of architectures, when there is none."""
    module = importlib.import_module(_MODULES[architecture(config)])
    return cast(Callable[[ConfigFile], ModelSpec], module.spec)


def architecture(config: ConfigFile) -> str:
    """The first supported name under `architectures`, or the one that goes with `model_type`."""
    names = config.values.get("architectures") or []
    if not names and (model_type := config.values.get("model_type")):
        names = [_MODEL_TYPES.get(model_type, model_type)]
    for name in names:
        if name in _MODULES:
            return str(name)
    found = (
        f"architecture {', '.join(map(str, names))} is not supported" if names else "names no architecture"
    )
    raise ValueError(f"{config.path}: {found}: use a model of {', '.join(SUPPORTED)}")
