"""A folder's config.json and generation_config.json: read, overridden, and asked for one value at a time.

Every refusal names the file, the value and the remedy. Knows no family and no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from workbench import checks
from workbench.errors import check_names

Number = TypeVar("Number", int, float)

# What may be overridden even where config.json does not have it.
_NAMES = (
    *("architectures", "model_type", "dtype", "torch_dtype", "vocab_size", "hidden_size", "hidden_act"),
    *("intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("attention_bias", "mlp_bias", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
    *("max_position_embeddings", "original_max_position_embeddings", "rope_parameters", "rope_scaling"),
    *("rope_theta", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
)
_ROPE_NAMES = ("rope_parameters", "rope_scaling", "rope_theta")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """config.json with the overrides applied, and what generation_config.json adds to it."""

    path: Path
    values: Mapping[str, Any]
    generation: Mapping[str, Any]  # {} without the file

    def over(self, defaults: Mapping[str, Any]) -> ConfigFile:
        """The same config with `defaults` where a name is absent; a null stays a null."""
        return replace(self, values=MappingProxyType({**defaults, **self.values}))

    def size(self, name: str, if_null: int | None = None) -> int:
        """An integer of 1 or more."""
        return self._checked(name, if_null, lambda value: checks.at_least(name, value, 1))

    def number(self, name: str, if_null: float | None = None) -> float:
        """A number greater than 0."""
        return self._checked(name, if_null, lambda value: checks.above_zero(name, value, "see its card"))

    def flag(self, name: str) -> bool:
        """true or false; null is false."""
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise ValueError(f"{self.path}: {name} is {value!r}: use true or false")
        return bool(value)

    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a sequence. generation_config.json goes first, as in transformers' `generate`."""
        stated = self.generation.get("eos_token_id")
        if stated is None:
            stated = self.values.get("eos_token_id")
        ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not all(type(item) is int for item in ids):
            raise ValueError(f"{self.path}: eos_token_id is {stated!r}: use an integer or a list of integers")
        return tuple(dict.fromkeys(ids))

    def _checked(self, name: str, if_null: Number | None, check: Callable[[object], Number]) -> Number:
        value = self.values.get(name)
        if value is None:
            value = if_null
        if value is None:
            raise ValueError(f"{self.path} has no {name}: add it, the model's card says how much it is")
        try:
            return check(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: {error}") from error


def read_config(folder: Path, hf_overrides: Mapping[str, Any] | None = None) -> ConfigFile:
    """config.json of `folder` with `hf_overrides` on top; FileNotFoundError, ValueError or TypeError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}: check the path")
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give a Hugging Face model folder, as save_pretrained writes it"
        )
    values = _read_json(path)
    overrides = _checked_overrides(hf_overrides, values)
    generation = _read_json(folder / "generation_config.json")
    if "eos_token_id" in overrides:
        generation.pop("eos_token_id", None)
    return ConfigFile(path, MappingProxyType(_merged(values, overrides)), MappingProxyType(generation))


def _checked_overrides(given: Mapping[str, Any] | None, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"hf_overrides is {given!r}: use a dict of config.json's names and values")
    check_names("hf_overrides", given, {*_NAMES, *values})
    return given


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object: download it again")
    return values


def _merged(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `overrides` on top, and whatever either calls its rope settings under one name.

    Old configs have rope_theta and rope_scaling beside each other, new ones both in rope_parameters. An
    override of the scaling that brings no theta keeps the checkpoint's: the weights were trained with it.
    """
    merged = {name: value for name, value in {**values, **overrides}.items() if name not in _ROPE_NAMES}
    rope = _rope_parameters(values)
    if "rope_scaling" in overrides or "rope_parameters" in overrides:
        theta = {name: rope[name] for name in rope if name == "rope_theta"}
        rope = theta | _rope_parameters(overrides)
    if "rope_theta" in overrides:
        rope["rope_theta"] = overrides["rope_theta"]
    return merged | {"rope_parameters": rope}


def _rope_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    found = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        raise ValueError(f"the rope settings are {found!r}: use an object with rope_type and its parameters")
    theta = {"rope_theta": values["rope_theta"]} if "rope_theta" in values else {}
    return theta | dict(found)
