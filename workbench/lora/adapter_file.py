"""An adapter's folder as PEFT writes it, read and checked against a model before any weight is.

adapter_config.json says what kind it is and how its product is scaled, the header of
adapter_model.safetensors which modules it changes, of what rank. Every refusal names the module and the
remedy. Knows no engine and no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from workbench.checks import above_zero, at_least
from workbench.lora.modules import LM_HEAD, NAMES, Sizes, module_sizes
from workbench.models.spec import ModelSpec
from workbench.models.weight_files import StoredTensor, tensors_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FLOATS = ("F32", "BF16", "F16", "F64")
_TENSOR = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<linear>[AB])(?:\.\w+)?\.weight|lora_embedding_(?P<embedding>[AB])(?:\.\w+)?)"
)
# Copies of the model's own tables, which PEFT saves where an adapter changes them.
_COPIES = ("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")
_RETRAIN = "train it without, or merge it into the model"
# Settings that change what an adapter computes, in a way the engine does not: refused unless off.
_UNSUPPORTED = {
    "use_dora": f"DoRA is not supported: {_RETRAIN}",
    "lora_bias": f"biases beside the low-rank product are not supported: {_RETRAIN}",
    "modules_to_save": "whole modules beside the low-rank ones are not supported: leave modules_to_save out"
    f" and {_RETRAIN}",
    "trainable_token_indices": f"tokens trained one by one are not supported: {_RETRAIN}",
    "target_parameters": f"only whole modules are supported: {_RETRAIN}",
    "layer_replication": f"layers that are used twice are not supported: {_RETRAIN}",
    "alora_invocation_tokens": f"activated LoRA is not supported: {_RETRAIN}",
    "use_qalora": f"QA-LoRA is not supported: {_RETRAIN}",
    "use_bdlora": f"block-diagonal LoRA is not supported: {_RETRAIN}",
    "arrow_config": f"Arrow routing is not supported: {_RETRAIN}",
    "megatron_config": f"Megatron's parallel layers are not supported: {_RETRAIN}",
    "fan_in_fan_out": "weights of the form [in, out] are not supported: save it with fan_in_fan_out false",
}
# Initialisations that leave the base model as it is; others (PiSSA, OLoRA, CorDA, LoftQ) change its weights.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


class Change(NamedTuple):
    """What is added to one module's product: scale * B (A x)."""

    shrink: StoredTensor  # A [rank, in]; of the embedding [rank, vocab]
    expand: StoredTensor  # B [out, rank]
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """A folder that was found good."""

    folder: Path
    changes: Mapping[str, Change]  # by module, as `module_sizes` names them
    stamp: tuple[int, int]  # size and time (ns) of the weights, to notice that they were exchanged

    @property
    def rank(self) -> int:
        """The largest."""
        return max(change.rank for change in self.changes.values())


def stamp_of(folder: Path) -> tuple[int, int]:
    """What changes when somebody writes other weights; FileNotFoundError where there are none."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(_no_weights(folder))
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def read_adapter(folder: Path, spec: ModelSpec, max_rank: int) -> AdapterFile:
    """The adapter in `folder`, checked against a model.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, as PEFT's save_pretrained writes them.
        spec: of the model it is for.
        max_rank: the largest rank the engine has room for.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the adapter is of a kind, a shape or a rank that cannot be used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}: check lora_path")
    config = _read_config(folder / CONFIG)
    stamp = stamp_of(folder)
    pairs = _pairs(_without_copies(tensors_of(folder / WEIGHTS), spec, folder), folder)
    sizes = module_sizes(spec)
    for module in pairs:
        if module not in sizes:
            raise ValueError(
                f"{folder}: the adapter changes {module!r}, which this model does not have or which is not"
                f" supported (supported: {', '.join(NAMES)}, layers 0 to {spec.num_layers - 1}): use an"
                " adapter trained for this model on these"
            )
    if not pairs:
        raise ValueError(f"{folder / WEIGHTS} holds no LoRA weights: save the adapter again with PEFT")
    changes = {module: _change(module, pair, sizes[module], config, folder) for module, pair in pairs.items()}
    for module, change in changes.items():
        if change.rank > max_rank:
            raise ValueError(
                f"{folder}: {module!r} has rank {change.rank}, and max_lora_rank is {max_rank}: open the LLM"
                f" with max_lora_rank={change.rank}, or use an adapter of a lower rank"
            )
    return AdapterFile(folder, MappingProxyType(changes), stamp)


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} has no {CONFIG}: give the folder that PEFT's save_pretrained wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not an object: download it again")
    _check_kind(config, path)
    return config


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}: only LORA adapters are supported")
    for name, reason in _UNSUPPORTED.items():
        if config.get(name):
            raise ValueError(f"{path}: {name} is {config[name]!r}: {reason}")
    if config.get("bias", "none") not in ("none", None):
        raise ValueError(f"{path}: bias is {config['bias']!r}: {_UNSUPPORTED['lora_bias']}")
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"{path}: init_lora_weights is {start!r}, which changes the base model too: convert the adapter"
            " to a plain one (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _without_copies(
    stored: Mapping[str, StoredTensor], spec: ModelSpec, folder: Path
) -> dict[str, StoredTensor]:
    kept, table = {}, (spec.vocab_size, spec.hidden_size)
    for name, tensor in stored.items():
        if not name.endswith(_COPIES):
            kept[name] = tensor
        elif tensor.shape != table:
            raise ValueError(
                f"{folder}: {name!r} has shape {list(tensor.shape)}, the model's is {list(table)}: the"
                " adapter was trained with another vocabulary"
            )
    return kept


def _pairs(stored: Mapping[str, StoredTensor], folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """The tensors of each module, by "A" and "B"."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{folder / WEIGHTS} holds {name!r}, which is no lora_A or lora_B: DoRA, biases and whole"
                f" modules are not supported; {_RETRAIN}"
            )
        module = match["module"].removeprefix("base_model.model.").removeprefix("model.")
        found.setdefault(module, {})[match["linear"] or match["embedding"]] = tensor
    return found


def _change(
    module: str, pair: Mapping[str, StoredTensor], sizes: Sizes, config: Mapping[str, Any], folder: Path
) -> Change:
    if len(pair) < 2:
        lacking = "lora_A" if "B" in pair else "lora_B"
        raise ValueError(f"{folder / WEIGHTS} lacks {lacking} of {module!r}: download it again")
    shrink, expand = pair["A"], pair["B"]
    rank = shrink.shape[0] if len(shrink.shape) == 2 else 0
    for tensor, expected in ((shrink, (rank, sizes.n_in)), (expand, (sizes.n_out, rank))):
        if tensor.shape != expected or not rank:
            raise ValueError(
                f"{folder}: {tensor.name!r} has shape {list(tensor.shape)}, this model's {module!r} asks for"
                f" {['rank' if n == 0 else n for n in expected]}: the adapter was trained for another model"
            )
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f"{folder}: {tensor.name!r} is stored as {tensor.dtype}: save it in {', '.join(_FLOATS)}"
            )
    return Change(shrink, expand, rank, _scale(module, rank, config, folder / CONFIG))


def _scale(module: str, rank: int, config: Mapping[str, Any], path: Path) -> float:
    """lora_alpha over the rank, or over its root (rsLoRA, Kalajdzievski 2023)."""
    stated = _of_module(module, config.get("rank_pattern"), config.get("r", rank))
    try:
        stated = at_least("r", stated, 1)
        alpha = above_zero(
            "lora_alpha",
            _of_module(module, config.get("alpha_pattern"), config.get("lora_alpha", 8)),
            "see its card",
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if stated != rank:
        raise ValueError(
            f"{path} says that {module!r} has rank {stated}, its weights have {rank}: the two files belong to"
            " different adapters; download both again"
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(module: str, patterns: Mapping[str, Any] | None, otherwise: Any) -> Any:
    """A module's own value: patterns are names' ends, or regular expressions that match them, as in PEFT."""
    full = module if module == LM_HEAD else f"model.{module}"
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", full):
            return value
    return otherwise


def _no_weights(folder: Path) -> str:
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    return (
        f"{folder} has no {WEIGHTS} (it has {found}): save the adapter with PEFT's save_pretrained, which"
        " writes safetensors"
    )
