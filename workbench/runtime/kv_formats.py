"""How each layer's keys and values are stored: as they are computed, or in FP8 with scales.

Reads the settings' names and the model's folder; knows shapes and dtypes, and nothing of memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from workbench.config import PER_TOKEN_HEAD, SLIDING, Settings, fp8_name
from workbench.kernels.attention.fp8 import EXPONENT_OF_LARGEST
from workbench.models.kv_scales import FILE, LayerScales, read_scales
from workbench.models.spec import ModelSpec

logger = logging.getLogger(__name__)

FP8 = {
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    PER_TOKEN_HEAD: torch.float8_e4m3fn,
}


ONE = "1.0"  # no scales


class Format(NamedTuple):
    """Of one layer's keys and values."""

    name: str  # as the settings have it, or the name of the model's dtype
    dtype: torch.dtype  # of a stored number
    per_head: bool = False  # each token's head has a scale of its own, a byte beside its numbers

    @property
    def is_fp8(self) -> bool:
        return self.name in FP8

    def head_bytes(self, head_dim: int) -> int:
        """Of one head of one token's keys, or values."""
        return head_dim * self.dtype.itemsize + int(self.per_head)


class Stored(NamedTuple):
    """How the whole cache is stored."""

    formats: tuple[Format, ...]  # of each layer
    scales: tuple[LayerScales, ...] | None  # of each layer; None: 1, or found while it runs
    source: str  # of the scales, for people; "": there are none


def pick_storage(settings: Settings, folder: Path, spec: ModelSpec, dtype: torch.dtype) -> Stored:
    """What the settings ask for, with the scales that the model's folder has.

    Raises:
        ValueError: a layer that is not there, or scales that cannot be used; the message says what to do.
    """
    formats = kv_formats(settings, spec, dtype)
    one = next((one for one in formats if one.is_fp8), None)
    if one is None:
        return Stored(formats, None, "")
    if one.per_head:
        return Stored(formats, None, "each token's head")
    if settings.calculate_kv_scales:
        return Stored(formats, None, "the first step")
    found = None if settings.load_format == "dummy" else read_scales(folder, spec)
    if found is None:
        logger.info("no scales for the KV cache: 1.0 it is; `workbench calibrate` finds them (%s)", FILE)
        return Stored(formats, None, ONE)
    # Scales bring a layer's largest number to the format's; both formats' are 1.75 times a power of two.
    written = EXPONENT_OF_LARGEST[FP8[found.dtype]]
    factor = 2.0 ** (written - EXPONENT_OF_LARGEST[one.dtype])
    scales = tuple([LayerScales(scale.key * factor, scale.value * factor) for scale in found.scales])
    return Stored(formats, scales, found.source)


def kv_formats(settings: Settings, spec: ModelSpec, dtype: torch.dtype) -> tuple[Format, ...]:
    """The format of every layer; `dtype`: the model's.

    Raises:
        ValueError: a layer that is to be skipped is not there.
    """
    plain = Format(str(dtype).removeprefix("torch."), dtype)
    name = fp8_name(settings.kv_cache_dtype)
    if name is None:
        return (plain,) * spec.num_layers
    fp8 = Format(name, FP8[name], name == PER_TOKEN_HEAD)
    skipped = _skipped(settings.kv_cache_dtype_skip_layers or (), spec)
    if len(skipped) == spec.num_layers:
        raise ValueError(
            f"kv_cache_dtype_skip_layers={settings.kv_cache_dtype_skip_layers!r} skips all {spec.num_layers}"
            " layers: leave out kv_cache_dtype, or skip fewer"
        )
    return tuple(plain if layer in skipped else fp8 for layer in range(spec.num_layers))


def _skipped(given: Sequence[str | int], spec: ModelSpec) -> set[int]:
    found: set[int] = set()
    for entry in given:
        if entry in SLIDING:
            windowed = {layer for layer, window in enumerate(spec.windows) if window is not None}
            if not windowed:
                raise ValueError(
                    f"kv_cache_dtype_skip_layers has {entry!r}, and no layer of this model has a window:"
                    " leave it out"
                )
            found |= windowed
        elif int(entry) < spec.num_layers:
            found.add(int(entry))
        else:
            raise ValueError(
                f"kv_cache_dtype_skip_layers has layer {entry}, and the model has layers 0 to"
                f" {spec.num_layers - 1}: name one of those, or 'sliding'"
            )
    return found


def described(formats: Sequence[Format]) -> str:
    """For people: `fp8_e4m3`, or `fp8_e4m3, layers 0 and 31 bfloat16`."""
    names = [one.name for one in formats]
    stored = next((one.name for one in formats if one.is_fp8), names[0])
    others = [layer for layer, name in enumerate(names) if name != stored]
    if not others:
        return stored
    return f"{stored}; layers {', '.join(map(str, others))}: {names[others[0]]}"
