"""The safetensors files of a folder: which tensors they hold, of what shape, and whether they are whole.

Reads headers only, so that everything wrong is known before the first weight is. Knows no model and no torch.
The format: 8 bytes, the header's length n, little endian; n bytes of JSON; the data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is, and what the header says of it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors writes it: "BF16"
    begin: int  # its first byte in the file
    end: int  # behind its last


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by name.

    Raises:
        FileNotFoundError: there are no weights, or a file of the index is missing.
        ValueError: a file is truncated or no safetensors file.
    """
    return {name: tensor for path in _files(folder) for name, tensor in tensors_of(path).items()}


def stored_dtype(folder: Path) -> str:
    """The dtype of the first tensor, by torch's name; "float32" when there is no weight."""
    for path in (folder / _SINGLE, *sorted(folder.glob("model-*.safetensors"))):
        if path.is_file():
            for tensor in tensors_of(path).values():
                return _FLOATS.get(tensor.dtype, tensor.dtype)
    return "float32"


def _files(folder: Path) -> list[Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{folder} has neither {_SINGLE} nor {_INDEX} (it has {found}): save the model with "
            'save_pretrained, or ask for random weights with load_format="dummy"'
        )
    return _indexed(folder / _INDEX)


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights ({error!r}): download it again") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index.parent} lacks {', '.join(missing)}, of {len(names)} files in {index.name}: download it"
        )
    return [index.parent / name for name in names]


def tensors_of(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file; ValueError where it is truncated or no safetensors file."""
    entries, data_start = _read_header(path)
    entries.pop("__metadata__", None)
    expected = data_start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    found = path.stat().st_size
    if found != expected:
        raise ValueError(f"{path} has {found} bytes, its header tells of {expected}: download it again")
    return {
        name: StoredTensor(
            path,
            name,
            tuple(entry["shape"]),
            entry["dtype"],
            *(data_start + offset for offset in entry["data_offsets"]),
        )
        for name, entry in entries.items()
    }


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which the data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(f"{path} is a Git LFS pointer, not the file it stands for: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or 8 + length > size:
            raise ValueError(
                f"{path} has {size} bytes, expected at least {8 + max(length, 2)}: it is truncated or no "
                "safetensors file; download it again"
            )
        try:
            return json.loads(file.read(length)), 8 + length
        except ValueError as error:
            raise ValueError(f"{path} has no readable header ({error}): download it again") from error
