"""The rope settings of a config, in any spelling of the last years, as one RopeSpec. Knows no tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from workbench.models.config_file import ConfigFile
from workbench.models.spec import RopeKind, RopeSpec

_DEFAULT_THETA = 10000.0  # of every family here
_FROM_PRETRAINING = ("yarn", "longrope", "llama3")  # kinds that know the context of the pretraining


def read_rope(config: ConfigFile, head_dim: int) -> RopeSpec:
    """The RopeSpec of `config`.

    Raises:
        ValueError: the kind is unknown, a parameter of the kind is missing or no number, or a list of
            longrope does not have head_dim / 2 entries.
    """
    settings = _Settings(config, config.values["rope_parameters"])
    kind = settings.kind()
    common = {"kind": kind, "theta": settings.number("rope_theta", _DEFAULT_THETA)}
    context = config.size("max_position_embeddings")
    if kind in _FROM_PRETRAINING:
        context = settings.pretraining_context(context)
    common["original_max_position_embeddings"] = context
    return RopeSpec(**common, **_OF_KIND[kind](settings, context, head_dim // 2))  # type: ignore[arg-type]


class _Settings:
    """The values of rope_parameters, each with the error that names it."""

    def __init__(self, config: ConfigFile, values: Mapping[str, Any]) -> None:
        self.config = config
        self.values = values

    def kind(self) -> RopeKind:
        kind = self.values.get("rope_type") or self.values.get("type") or "default"
        if any(isinstance(value, Mapping) for value in self.values.values()):
            raise self.refusal("rope_parameters differ from layer to layer, which no family here does")
        if kind not in get_args(RopeKind):
            raise self.refusal(f"rope_type {kind!r} is not supported: use {', '.join(get_args(RopeKind))}")
        if self.values.get("partial_rotary_factor", 1.0) != 1.0:
            raise self.refusal("partial_rotary_factor is not 1, but every family here turns whole heads")
        return cast(RopeKind, kind)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.refusal(f"rope_parameters has {name} {value!r}: use a number greater than 0")
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        values = self.values.get(name)
        if not isinstance(values, list) or len(values) != length:
            found = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise self.refusal(f"rope_parameters has {name} of {found}: use {length} (half of head_dim)")
        return tuple(map(float, values))

    def pretraining_context(self, default: int) -> int:
        # Some checkpoints state it beside rope_parameters; transformers then goes by that.
        name = "original_max_position_embeddings"
        outer = self.config.values.get(name)
        return int(self.number(name, default) if outer is None else self.config.size(name))

    def stretch(self, context: int) -> float:
        """`factor`, or how much longer the model's context is than that of its pretraining."""
        return self.number("factor", self.config.size("max_position_embeddings") / context)

    def refusal(self, complaint: str) -> ValueError:
        return ValueError(f"{self.config.path}: {complaint}")


def _default(settings: _Settings, context: int, pairs: int) -> dict[str, Any]:
    return {}


def _scaled(settings: _Settings, context: int, pairs: int) -> dict[str, Any]:
    return {"factor": settings.number("factor")}


def _llama3(settings: _Settings, context: int, pairs: int) -> dict[str, Any]:
    names = ("factor", "low_freq_factor", "high_freq_factor")
    return {name: settings.number(name) for name in names}


def _longrope(settings: _Settings, context: int, pairs: int) -> dict[str, Any]:
    factor = settings.stretch(context)
    grown = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
    return {
        "factor": factor,
        "attention_factor": settings.number("attention_factor", grown),
        "short_factor": settings.numbers("short_factor", pairs),
        "long_factor": settings.numbers("long_factor", pairs),
    }


def _yarn(settings: _Settings, context: int, pairs: int) -> dict[str, Any]:
    factor = settings.stretch(context)
    return {
        "factor": factor,
        "attention_factor": settings.number("attention_factor", _yarn_attention(settings.values, factor)),
        "beta_fast": settings.number("beta_fast", 32.0),
        "beta_slow": settings.number("beta_slow", 1.0),
        "truncate": settings.values.get("truncate", True) is not False,
    }


def _yarn_attention(values: Mapping[str, Any], factor: float) -> float:
    """YaRN (arXiv:2309.00071), eq. 22, with the two weights DeepSeek added to it."""
    numerator, denominator = values.get("mscale"), values.get("mscale_all_dim")
    growth = 0.1 * math.log(max(factor, 1.0))
    if numerator and denominator:
        return (growth * numerator + 1.0) / (growth * denominator + 1.0)
    return growth + 1.0


_OF_KIND = {
    "default": _default,
    "linear": _scaled,
    "dynamic": _scaled,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
