"""What the configs of dense decoders have in common. Knows no family: each says where it differs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from workbench.models.config_file import ConfigFile
from workbench.models.rope import read_rope
from workbench.models.spec import ModelSpec
from workbench.models.weight_files import stored_dtype

DTYPES = ("float32", "bfloat16", "float16")

# transformers leaves these out of a config.json where they are what its classes have anyway.
COMMON_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
)


def dense_spec(
    config: ConfigFile,
    architecture: str,
    *,
    windows: tuple[int | None, ...],
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    """The spec of a decoder whose layers are attention and a gated SiLU MLP, each behind an RMS norm."""
    _refuse_what_would_be_ignored(config)
    hidden_size, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    head_dim = config.size("head_dim", if_null=max(1, hidden_size // num_heads))
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.size("intermediate_size"),
        num_layers=config.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config, num_heads),
        head_dim=_even(config, head_dim),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=read_rope(config, head_dim),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        max_position_embeddings=config.size("max_position_embeddings"),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        windows=windows,
        dtype=_dtype(config),
        eos_token_ids=config.end_tokens(),
        bos_token_id=config.values.get("bos_token_id"),
    )


def _refuse_what_would_be_ignored(config: ConfigFile) -> None:
    activation = config.values.get("hidden_act")
    if activation not in ("silu", "swish"):
        raise ValueError(
            f"{config.path}: hidden_act {activation!r} is not supported: use a model with 'silu'"
        )
    if _quantises_weights(config.values.get("quantization_config")):
        raise ValueError(
            f"{config.path}: quantized weights are not supported: use the model in 16 or 32 bits"
        )


def _quantises_weights(stated: Any) -> bool:
    """Whether a quantization_config speaks of more than the scales of a KV cache."""
    return bool(stated) and not (
        isinstance(stated, Mapping)
        and stated.get("kv_cache_scheme")
        and not stated.get("config_groups", True)
    )


def _num_kv_heads(config: ConfigFile, num_heads: int) -> int:
    num_kv_heads = config.size("num_key_value_heads", if_null=num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"{config.path}: {num_heads} attention heads cannot share {num_kv_heads} key-value heads: "
            "num_attention_heads has to be a multiple of num_key_value_heads"
        )
    return num_kv_heads


def _even(config: ConfigFile, head_dim: int) -> int:
    if head_dim % 2:
        raise ValueError(f"{config.path}: head_dim is {head_dim}: the rotary embedding needs an even one")
    return head_dim


def _dtype(config: ConfigFile) -> str:
    """As config.json has it, and the weights' own where it has none."""
    stated = config.values.get("dtype") or config.values.get("torch_dtype")
    name = str(stated).removeprefix("torch.") if stated else stored_dtype(config.path.parent)
    if name not in DTYPES:
        raise ValueError(f"{config.path}: dtype {name!r} is not supported: use {', '.join(DTYPES)}")
    return name
