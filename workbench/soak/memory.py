"""The memory of this process, read so that growth shows. Knows glibc, where it is there."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one_heap() -> None:
    """All threads of this process allocate from one heap from now on, not each from one of its own.

    With many, pages that a few live objects hold move what is resident by 4 MiB from round to round (standard
    deviation), and it climbs for tens of rounds until there are enough of them; with one it is 0.4 MiB.
    """
    if (mallopt := _of_libc("mallopt")) is not None:
        mallopt(M_ARENA_MAX, 1)


def resident_mib() -> float | None:
    """MiB of this process in memory; None where the system does not say (it has no /proc).

    Without what was freed and glibc keeps for later.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    import resource

    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)
    return int(statm.read_text().split()[1]) * resource.getpagesize() / MIB


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of the system's C library; None where there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
