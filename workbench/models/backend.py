"""Where the project's own kernels run."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def has_kernels(device: torch.device) -> bool:
    """On a GPU, where Triton is installed; elsewhere plain torch computes."""
    return device.type == "cuda" and find_spec("triton") is not None
