"""Where the project's own kernels run."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def has_kernels(device: torch.device) -> bool:
    """On a GPU, where Triton is installed; elsewhere plain torch computes."""
    return device.type == "cuda" and find_spec("triton") is not None


def has_fp8(device: torch.device) -> bool:
    """Whether kernels convert eight-bit numbers there: one instruction for two, from Ada and Hopper on."""
    if device.type != "cuda":
        return True  # where kernels are interpreted
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 9)
