"""What a model is, in numbers: shapes, rotary embedding, windows, dtype, end tokens.

Read from a folder's config.json before any weight, and before torch is loaded. Knows no family by name: the
registry does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions become angles. Fields that a kind does not use keep their defaults."""

    kind: RopeKind
    theta: float  # base of the wavelengths
    original_max_position_embeddings: int  # positions of the pretraining, ahead of the scaling
    factor: float = 1.0  # by how much the context was stretched
    attention_factor: float = 1.0  # multiplies cosine and sine (yarn, longrope)
    beta_fast: float = 32.0  # yarn: rotations over the context above which a frequency is left alone
    beta_slow: float = 1.0  # yarn: rotations below which it is divided by factor
    truncate: bool = True  # yarn: round the bounds of the ramp between the two to whole dimensions
    low_freq_factor: float = 1.0  # llama3: context / wavelength below which a frequency is divided by factor
    high_freq_factor: float = 4.0  # llama3: context / wavelength above which it is left alone
    short_factor: tuple[float, ...] = ()  # longrope [head_dim / 2]; up to the original context
    long_factor: tuple[float, ...] = ()  # longrope [head_dim / 2]; beyond it


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only model, as its checkpoint describes it."""

    architecture: str  # as config.json names it: "LlamaForCausalLM"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeSpec
    tie_word_embeddings: bool  # the output projection is the embedding table
    max_position_embeddings: int
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool  # every head of q and k is normalised ahead of the rotary embedding
    windows: tuple[int | None, ...]  # [num_layers]; tokens a query sees, itself among them; None: all
    dtype: str  # of the checkpoint: "float32", "bfloat16" or "float16"
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


def read_spec(folder: Path, hf_overrides: dict[str, Any] | None = None) -> ModelSpec:
    """The spec of the model in `folder`, from its config.json (and generation_config.json for end tokens).

    Args:
        folder: a Hugging Face model folder, as transformers writes it now or wrote it years ago.
        hf_overrides: values that replace those of config.json, by its names.

    Raises:
        FileNotFoundError: there is no such folder, or no config.json in it.
        ValueError: a value cannot be used, or the architecture is not supported; the message says which are.
        TypeError: hf_overrides has a name that no config has.
    """
    from workbench.models.config_file import read_config
    from workbench.models.registry import family

    config = read_config(Path(folder), hf_overrides)
    return family(config)(config)
