"""Training configurations: a TOML file becomes one frozen value. Knows nothing of torch."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import blake2b
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from workbench.models.zoo.corpus import tasks

MAY_BE_ZERO: Final = ("max_steps", "seed", "workers", "eval_items", "final_items")  # of the whole numbers
# What may differ between a run and the run that resumes it.
NOT_IN_FINGERPRINT: Final = (
    "max_minutes",
    "workers",
    "compile",
    "eval_minutes",
    "eval_items",
    "log_every",
    "final_items",
)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama model."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int = 4096
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA adapter on a configuration's model, whose own weights stay as they are."""

    base: str  # the configuration, and embedded model, it changes
    rank: int
    alpha: float  # its product counts alpha / rank


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run. Sizes are in tokens and rows, times in minutes."""

    name: str
    model: ModelConfig
    mixture: Mapping[str, float]  # task -> share of the tokens
    rows: int  # sequences a step
    row_tokens: int  # tokens a sequence
    max_minutes: float = 0.0  # the run ends after this long (0: after max_steps)
    max_steps: int = 0  # the run ends after this many steps (0: after max_minutes)
    seed: int = 0
    prompt_weight: float = 0.1  # loss weight of what the model only reads
    matrix_lr: float = 5e-3  # Muon
    other_lr: float = 3e-3  # AdamW: embeddings and norms
    weight_decay: float = 0.1
    warmup: float = 0.02  # share of the run
    decay: float = 0.45  # share of the run, at the end, over which the rate falls to zero
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    workers: int = 0  # processes that make data (0: the training process itself)
    compile: bool = False
    log_every: int = 10  # steps
    eval_minutes: float = 0.0  # between held-out evaluations while training (0: none)
    eval_items: int = 100  # a kind
    final_items: int = 1500  # a task, for the card
    adapter: AdapterConfig | None = None  # only this is trained; None: the whole model

    @property
    def fingerprint(self) -> str:
        """Names the run: two configurations with the same one lead to the same training."""
        values = {key: value for key, value in asdict(self).items() if key not in NOT_IN_FINGERPRINT}
        if self.adapter is None:
            del values["adapter"]
        return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=8).hexdigest()


def known() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(
        entry.name[:-5]
        for entry in (files(__package__) / "configs").iterdir()
        if entry.name.endswith(".toml")
    )


def load(name_or_path: str) -> TrainConfig:
    """The configuration of that name, or in that TOML file.

    Raises OSError when there is neither, ValueError for what is not TOML, for unknown or missing keys and for
    unknown tasks.
    """
    if name_or_path in known():
        text = (files(__package__) / "configs" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(
            f"no training configuration {name_or_path!r}: give a TOML file or one of {', '.join(known())}"
        )
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{name_or_path} is not a TOML file: {error}") from error
    return parse(values, name_or_path)


def parse(values: dict[str, Any], source: str) -> TrainConfig:
    """A configuration from the tables of a TOML file; `source` is for the error messages."""
    adapter = table(values, "adapter", source)
    model = table(values, "model", source)
    check_keys({**values, "model": model}, TrainConfig, source)
    if not isinstance(values["mixture"], dict):
        raise ValueError(f"{source}: mixture is {values['mixture']!r}: give a table [mixture] of shares")
    if adapter:
        config = TrainConfig(
            model=shape_of(adapter, model, source), adapter=AdapterConfig(**adapter), **values
        )
    else:
        check_keys(model, ModelConfig, f"[model] of {source}")
        config = TrainConfig(model=ModelConfig(**model), **values)
    check_values(config, source)
    return config


def table(values: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    """Takes a table of the file out of its values; empty where it is not there."""
    found = values.pop(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{source}: {name} is {found!r}: give a table [{name}]")
    return found


def shape_of(adapter: dict[str, Any], model: dict[str, Any], source: str) -> ModelConfig:
    """The shape of the model that an adapter is for."""
    check_keys(adapter, AdapterConfig, f"[adapter] of {source}")
    if model:
        raise ValueError(f"{source}: [model] beside [adapter]: leave it out, the base model has its own")
    base = load(str(adapter["base"]))
    if base.adapter is not None:
        raise ValueError(f"{source}: base is {base.name!r}, an adapter: name a model")
    return base.model


def check_values(config: TrainConfig, source: str) -> None:
    """Raises ValueError for a value of another type, out of its range, or at odds with another one."""
    for part in (config, config.model, config.adapter):
        for field in fields(part) if part else ():
            check_value(field.name, field.type, getattr(part, field.name), source)
    for task, share in config.mixture.items():
        tasks.check_task(task)
        check_value(task, float, share, f"[mixture] of {source}")
    model = config.model
    if not config.mixture or min(config.mixture.values()) <= 0:
        raise ValueError(
            f"{source}: [mixture] gives no task, or one no share: set a share above 0 for each task"
        )
    if (config.max_minutes > 0) == (config.max_steps > 0):
        raise ValueError(f"{source}: set exactly one of max_minutes and max_steps above 0")
    if model.num_heads % model.num_kv_heads or model.head_dim % 2:
        raise ValueError(
            f"{source}: {model.num_heads} heads of {model.head_dim} over {model.num_kv_heads} kv heads:"
            " make num_heads a multiple of num_kv_heads, and head_dim even"
        )


def check_value(name: str, kind: Any, value: object, source: str) -> None:
    """Raises ValueError for a value that is not of its field's type, or below the least it may be."""
    if kind in (int, float):
        least = 0 if name in MAY_BE_ZERO or kind is float else 1
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not least <= value < inf:
            noun = "a whole number" if kind is int else "a number"
            raise ValueError(f"{source}: {name} is {value!r}: give {noun} of at least {least}")
    elif kind in (str, bool) and not isinstance(value, kind):
        raise ValueError(
            f"{source}: {name} is {value!r}: give {'true or false' if kind is bool else 'a text'}"
        )
    elif get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{source}: {name} is {value!r}: choose one of {', '.join(get_args(kind))}")


def check_keys(values: Mapping[str, Any], kind: type, source: str) -> None:
    """Raises ValueError unless the keys are fields of the dataclass and no required one is missing."""
    allowed = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r} in {source}: choose from {', '.join(allowed)}")
    for name, field in allowed.items():
        if name not in values and field.default is MISSING:
            raise ValueError(f"{source} lacks {name!r}: add it")
