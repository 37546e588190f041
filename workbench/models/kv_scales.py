"""Scales of an FP8 KV cache that come with a model: `workbench calibrate`'s file, or the checkpoint's own.

A key is stored as key / scale. Knows folders and safetensors' headers, no engine; imports torch only to read
the values of a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.models.spec import ModelSpec
from workbench.models.weight_files import StoredTensor, stored_tensors

FILE = "kv_scales.json"
# self_attn.k_scale; attn. and the projections' own are where other writers put them
_TENSOR = re.compile(r"(?:model\.)?layers\.(\d+)\.self_attn\.(?:attn\.|[kv]_proj\.)?([kv])_scale")
_SAMPLE = 4096  # bytes
_SAMPLES = 16  # of each weights file


class LayerScales(NamedTuple):
    key: float
    value: float


class Found(NamedTuple):
    """Scales of all layers, and who says so."""

    scales: tuple[LayerScales, ...]
    source: str  # for people: "kv_scales.json", "the checkpoint"
    dtype: str  # the format they are for


def is_scale(name: str) -> bool:
    """Whether a checkpoint's tensor is a scale of the KV cache."""
    return _TENSOR.fullmatch(name) is not None


def read_scales(folder: Path, spec: ModelSpec) -> Found | None:
    """What the folder says: `workbench calibrate`'s file first, then the checkpoint; None: neither has any.

    Raises:
        ValueError: the file is broken or another model's, a scale is missing, or is not a number above 0.
    """
    if (folder / FILE).is_file():
        return _from_file(folder / FILE, folder, spec)
    return _from_checkpoint(folder, spec)


def write_scales(
    file: Path, folder: Path, spec: ModelSpec, scales: Sequence[LayerScales], about: Any
) -> None:
    """The file that `read_scales` reads; `about`: whatever else is worth knowing, by name."""
    text = {
        "kv_cache_dtype": "fp8_e4m3",
        "model": fingerprint(folder, spec),
        "scales": [scale._asdict() for scale in scales],
        **about,
    }
    file.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def fingerprint(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """What tells one model from another without reading all of it: shapes, and samples of its weights."""
    digest = hashlib.sha256()
    for path in sorted({tensor.path for tensor in stored_tensors(folder).values()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for part in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * part // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return {
        "architecture": spec.architecture,
        "layers": spec.num_layers,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "weights": digest.hexdigest(),
    }


def _from_file(file: Path, folder: Path, spec: ModelSpec) -> Found:
    remedy = f"run `workbench calibrate {folder}` again, or take {file.name} away"
    try:
        text = json.loads(file.read_text(encoding="utf-8"))
        model, dtype = dict(text["model"]), str(text["kv_cache_dtype"])
        scales = tuple([LayerScales(float(one["key"]), float(one["value"])) for one in text["scales"]])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what `workbench calibrate` writes ({error!r}): {remedy}") from error
    if dtype not in ("fp8_e4m3", "fp8_e5m2"):
        raise ValueError(f"{file} is for a cache of {dtype!r}, not of fp8_e4m3 or fp8_e5m2: {remedy}")
    here = fingerprint(folder, spec)
    for name, value in here.items():
        if model.get(name) != value:
            raise ValueError(
                f"{file} is of another model, whose {name} is {_short(model.get(name))} and not"
                f" {_short(value)}: {remedy}"
            )
    if len(scales) != spec.num_layers:
        raise ValueError(f"{file} has scales of {len(scales)} of {spec.num_layers} layers: {remedy}")
    for layer, scale in enumerate(scales):
        _check(f"{file}: layer {layer}", scale, remedy)
    return Found(scales, file.name, dtype)


def _short(value: object) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)


def _check(where: str, scale: LayerScales, remedy: str) -> None:
    for name, value in scale._asdict().items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{where}: the {name} scale is {value}, not a number above 0: {remedy}")


def _from_checkpoint(folder: Path, spec: ModelSpec) -> Found | None:
    stored = {
        (int(found[1]), found[2]): tensor
        for name, tensor in stored_tensors(folder).items()
        if (found := _TENSOR.fullmatch(name))
    }
    if not stored:
        return None
    remedy = f"run `workbench calibrate {folder}`, which writes a file that goes before the checkpoint's"
    scales = []
    for layer in range(spec.num_layers):
        scale = LayerScales(*(_read(stored, layer, part, folder, remedy) for part in "kv"))
        _check(f"{folder}: layer {layer}", scale, remedy)
        scales.append(scale)
    return Found(tuple(scales), "the checkpoint", "fp8_e4m3")


def _read(
    stored: Mapping[tuple[int, str], StoredTensor], layer: int, part: str, folder: Path, remedy: str
) -> float:
    from workbench.models.mapped_file import MappedFile

    tensor = stored.get((layer, part))
    if tensor is None:
        raise ValueError(
            f"{folder} has scales of its KV cache, but no {part}_scale of layer {layer}: {remedy}"
        )
    if math.prod(tensor.shape) != 1:
        raise ValueError(
            f"{tensor.path}: {tensor.name!r} has shape {list(tensor.shape)}, and a layer has one: {remedy}"
        )
    return float(MappedFile(tensor.path).read(tensor))
