"""Time sources, handed in as arguments. Nothing else in the engine reads a clock."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]  # seconds, from an arbitrary origin, never going back

wall_clock: Clock = time.perf_counter
