"""Host memory that a GPU copies from and to while nobody waits: a region for each step in flight, in turn.

torch hands out such memory too. But when it is given back torch asks the device about the copies, in a
destructor, and behind a fault of the device that ends the process. These regions are never given back while
the device works; what becomes of them when it fails is device.py's affair. Knows of steps only their turns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 256  # bytes
_FIRST = 1 << 20  # bytes of a region to begin with; it grows with what a step brings


class Pinned:
    """Copies to and from a device. On a CPU there is nothing to copy."""

    def __init__(self, device: torch.device, turns: int) -> None:
        """`turns`: steps whose memory is kept apart; one that begins finds the last of its turn collected."""
        self.device = device
        on_gpu = device.type == "cuda"
        self._regions = [_region(_FIRST) for _ in range(turns)] if on_gpu else []
        self._outgrown: list[Tensor] = []  # copies from them may be under way
        self._turn = 0
        self._used = 0

    def begin(self, turn: int) -> None:
        """A step begins; what the step that had this turn before left here is no longer needed."""
        self._turn, self._used = turn, 0

    def upload(self, array: np.ndarray) -> Tensor:
        """A copy on the device, made in the order of the device's work; on a CPU the array itself."""
        given = torch.from_numpy(np.ascontiguousarray(array))
        if not self._regions:
            return given
        place = self._room(given)
        place.copy_(given)
        return place.to(self.device, non_blocking=True)

    def download(self, tensor: Tensor) -> Tensor:
        """A copy on the host that is under way; good until the next step of this turn begins."""
        if not self._regions:
            return tensor.clone()
        return self._room(tensor).copy_(tensor, non_blocking=True)

    def _room(self, like: Tensor) -> Tensor:
        begin, end = self._used, self._used + like.nbytes
        region = self._regions[self._turn]
        if end > region.nbytes:
            self._outgrown.append(region)
            begin, end = 0, like.nbytes
            region = self._regions[self._turn] = _region(max(2 * region.nbytes, end))
        self._used = -(-end // _ALIGNED) * _ALIGNED
        return region[begin:end].view(like.dtype).view(like.shape)


def _region(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
