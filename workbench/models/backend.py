"""Where the project's own kernels run."""

from __future__ import annotations

from importlib.util import find_spec

import torch

# Off until the runner that uses them has passed its tests on a GPU (tests/gpu/test_kernels.py turns it on).
KERNELS_ON = False


def has_kernels(device: torch.device) -> bool:
    """On a GPU, where Triton is installed; elsewhere plain torch computes."""
    return KERNELS_ON and device.type == "cuda" and find_spec("triton") is not None
