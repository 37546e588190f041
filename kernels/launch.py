"""How kernels follow one another on the device: an early start where the GPU knows one.

From Hopper on, a kernel may start while the one before it still runs; it loads what no kernel writes (its
weights), then waits for the other's results. A chain of small kernels gains the launch gap and the first
loads. A kernel that takes part in it calls `gdc_wait` before it reads or writes anything else.
"""

from __future__ import annotations

from functools import cache

import torch

ALONE = {"EARLY": False}
CHAINED = {"EARLY": True, "launch_pdl": True}


def early(device: torch.device) -> dict[str, bool]:
    """Launch options for a kernel with the flag EARLY."""
    return CHAINED if device.type == "cuda" and _knows_early_start(device.index) else ALONE


@cache
def _knows_early_start(index: int | None) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index)[0] >= 9
