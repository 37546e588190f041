"""Weights onto a device: from a folder's safetensors, memory-mapped, or random for benchmarks.

Every name and shape is checked against the headers before the first byte of a weight is read. Imports neither
transformers nor numpy: the first token waits for this.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.models.decoder import Decoder, empty_decoder
from workbench.models.destinations import EMBEDDING, LM_HEAD, destinations
from workbench.models.kv_scales import is_scale
from workbench.models.mapped_file import MappedFile
from workbench.models.packing import with_packed_weights
from workbench.models.spec import ModelSpec
from workbench.models.weight_files import StoredTensor, stored_tensors

logger = logging.getLogger(__name__)

LoadFormat = Literal["auto", "safetensors", "dummy"]
Stored = Mapping[str, StoredTensor]  # by destination
_FORMATS = ("auto", "safetensors", "dummy")
_FLOATS = ("F32", "BF16", "F16", "F64")

# Standard deviation of random weights, transformers' initializer_range: activations stay near 1 at any depth.
_DUMMY_SCALE = 0.02


def load_model(
    folder: Path,
    spec: ModelSpec,
    device: torch.device | str,
    dtype: torch.dtype,
    load_format: LoadFormat = "auto",
    seed: int = 0,
    *,
    max_positions: int | None = None,
) -> Decoder:
    """A decoder with its weights on `device`, in `dtype`.

    Args:
        folder: a Hugging Face model folder; not looked at with "dummy".
        spec: what read_spec said of it.
        device: where the weights go.
        dtype: torch.float32, bfloat16 or float16; weights stored in another one are converted on the way.
        load_format: "auto" and "safetensors" read the folder; "dummy" draws random weights.
        seed: of the random weights; the same seed gives the same weights on the same kind of device.
        max_positions: rows of the rotary table, the engine's max_model_len; None: the model's own maximum.

    Raises:
        FileNotFoundError: the folder has no weights, or lacks a file of the index.
        ValueError: a file is truncated, a tensor is missing or has another shape than the spec says.
    """
    if load_format not in _FORMATS:
        raise ValueError(f"load_format is {load_format!r}: use {', '.join(_FORMATS)}")
    device, length = torch.device(device), max_positions or spec.max_position_embeddings
    if load_format == "dummy":
        decoder = empty_decoder(spec, device, dtype, length, spec.tie_word_embeddings)
        _randomize(destinations(decoder), seed, device)
        return with_packed_weights(decoder)
    stored = _base_names(stored_tensors(Path(folder)))
    decoder = empty_decoder(spec, device, dtype, length, _tied(spec, stored))
    places = destinations(decoder)
    sources = _sources(places, stored, Path(folder))
    _tell_of_unused(places, stored, Path(folder))
    _fill(places, sources)
    return with_packed_weights(decoder)


def _randomize(places: Mapping[str, Tensor], seed: int, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(seed)
    for name, place in places.items():
        if name.endswith("norm.weight"):
            place.fill_(1.0)
        else:
            # Drawn in one piece, then copied: into strided memory the draw alone takes 7 times as long.
            drawn = torch.empty(place.shape, dtype=place.dtype, device=device)
            place.copy_(drawn.normal_(0.0, _DUMMY_SCALE, generator=generator))


def _base_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By the names of a base model: a checkpoint of a causal one puts "model." before them."""
    return {name.removeprefix("model."): tensor for name, tensor in stored.items()}


def _tied(spec: ModelSpec, stored: Stored) -> bool:
    """Whether one table is embedding and output projection; a checkpoint with two of them has its way."""
    if not spec.tie_word_embeddings or not {EMBEDDING, LM_HEAD} <= stored.keys():
        return spec.tie_word_embeddings
    if torch.equal(_read(stored[EMBEDDING]), _read(stored[LM_HEAD])):
        return True
    logger.warning(
        "config.json ties the output projection to the embeddings, but the checkpoint has two different "
        "tables: both are used; set tie_word_embeddings to false to silence this"
    )
    return False


def _sources(places: Mapping[str, Tensor], stored: Stored, folder: Path) -> dict[str, StoredTensor]:
    """The stored tensor for each place; ValueError for the first that is missing or does not fit."""
    renamed = dict(stored)
    if LM_HEAD not in places and LM_HEAD in stored:
        renamed.setdefault(EMBEDDING, stored[LM_HEAD])  # tied, and saved under the other name
    missing = [name for name in places if name not in renamed]
    if missing:
        raise ValueError(
            f"{folder} has no tensor {_in_full(missing[0])!r}"
            + (f" and lacks {len(missing) - 1} more" if missing[1:] else "")
            + ": the checkpoint is incomplete, or config.json describes another model"
        )
    for name, place in places.items():
        _check_fit(renamed[name], place)
    return {name: renamed[name] for name in places}


def _tell_of_unused(places: Mapping[str, Tensor], stored: Stored, folder: Path) -> None:
    """Warn of weights nobody asked for: a model without them runs, and says something else.

    An error would turn away who drops layers on purpose (hf_overrides). Rotary frequencies are computed, and
    old checkpoints hold them; a tied table may be stored under both its names.
    """
    known = {EMBEDDING, LM_HEAD, *places}
    unused = [name for name in stored if name not in known and not _is_known_elsewhere(name)]
    if unused:
        logger.warning(
            "%s: %d tensors of the checkpoint are not used, such as %r: config.json (or hf_overrides)"
            " describes another model, so expect other outputs",
            folder,
            len(unused),
            stored[unused[0]].name,
        )


def _is_known_elsewhere(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq") or is_scale(name)


def _in_full(name: str) -> str:
    return name if name == LM_HEAD else f"model.{name}"


def _check_fit(tensor: StoredTensor, place: Tensor) -> None:
    if tensor.shape != tuple(place.shape):
        raise ValueError(
            f"{tensor.path}: {tensor.name!r} has shape {list(tensor.shape)}, config.json asks for "
            f"{list(place.shape)}: the two belong to different models"
        )
    if tensor.dtype not in _FLOATS:
        raise ValueError(
            f"{tensor.path}: {tensor.name!r} is stored as {tensor.dtype}: use a checkpoint that is not "
            f"quantized, in {', '.join(_FLOATS)}"
        )


def _fill(places: Mapping[str, Tensor], sources: Mapping[str, StoredTensor]) -> None:
    """Copy file by file, memory-mapped: from the page cache to its place, converted on the way."""
    by_file: dict[Path, list[str]] = {}
    for name, tensor in sources.items():
        by_file.setdefault(tensor.path, []).append(name)
    for path, names in tqdm(by_file.items(), desc="Loading weights", unit="file", disable=len(by_file) < 2):
        file = MappedFile(path)
        for name in names:
            places[name].copy_(file.read(sources[name]))


def _read(tensor: StoredTensor) -> Tensor:
    return MappedFile(tensor.path).read(tensor)
