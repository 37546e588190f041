"""A safetensors file in memory, mapped: its tensors are read from the page cache when they are used.

Knows headers and torch, no model. safetensors has a reader of its own, `safe_open`, which maps files too.
But of each tensor for torch it leaves two ints behind for good (0.8.0; the bounds of a slice, of which PyO3's
`PySlice::new` never lets go), and adapters that take turns are read for as long as an engine lives.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from workbench.models.weight_files import StoredTensor

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class MappedFile:
    """Mapped until the last of its tensors is gone."""

    def __init__(self, path: Path) -> None:
        self._bytes = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def read(self, tensor: StoredTensor) -> Tensor:
        """One of its tensors, as it is stored; nothing is copied.

        Raises:
            ValueError: its dtype is not one of those above, or its bytes are not as many as its shape needs.
        """
        called = f"{tensor.path}: {tensor.name!r}"
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise ValueError(f"{called} is stored as {tensor.dtype}: use {', '.join(_DTYPES)}")
        needed = math.prod(tensor.shape) * dtype.itemsize
        if tensor.end - tensor.begin != needed:
            raise ValueError(
                f"{called} has {tensor.end - tensor.begin} bytes, its shape {list(tensor.shape)} needs"
                f" {needed}: download the file again"
            )
        # Sliced before it is viewed: an offset of the view would have to be a multiple of the dtype's size.
        data = torch.asarray(self._bytes[tensor.begin : tensor.end], dtype=torch.uint8)
        return data.view(dtype).view(tensor.shape)
