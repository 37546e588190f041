"""The slope of a line through points, and how sure it is. Knows nothing of what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

Z = NormalDist().inv_cdf(0.975)


class Slope(NamedTuple):
    """Per step of x, with the 95 % interval of ordinary least squares."""

    value: float
    low: float
    high: float


def slope(y: Sequence[float]) -> Slope | None:
    """The trend of y over 0, 1, 2, …; None below four points, which say nothing about their own noise."""
    n = len(y)
    if n < 4:
        return None
    x_mean, y_mean = (n - 1) / 2, math.fsum(y) / n
    spread = math.fsum((x - x_mean) ** 2 for x in range(n))
    value = math.fsum((x - x_mean) * (one - y_mean) for x, one in enumerate(y)) / spread
    rest = math.fsum((one - y_mean - value * (x - x_mean)) ** 2 for x, one in enumerate(y))
    half = student(n - 2) * math.sqrt(rest / (n - 2) / spread)
    return Slope(value, value - half, value + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion (Abramowitz and Stegun 26.7.5).

    Within 6 % at two degrees of freedom, within 0.1 % from five on.
    """
    z, v = Z, freedom
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / v + second / v**2 + third / v**3 + fourth / v**4
