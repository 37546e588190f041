"""Which device there is, what its faults are called, and how much of its memory the KV cache may have."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from workbench.config import CPU_POOL, Device, Settings
from workbench.errors import DeviceLost

P = ParamSpec("P")
T = TypeVar("T")

_FAULTS = ("CUDA error", "[CUDA]", "CUDNN_STATUS", "CUBLAS_STATUS")  # as torch and Triton word them

_DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


def naming_faults(method: Callable[P, T]) -> Callable[P, T]:
    """A fault of the device, which torch may report at any later call, becomes DeviceLost; OOM is none.

    The method's owner is left alone from then on.
    """

    @functools.wraps(method)
    def call(*args: P.args, **options: P.kwargs) -> T:
        try:
            return method(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if isinstance(error, torch.AcceleratorError) or any(mark in str(error) for mark in _FAULTS):
                _leave_alone(args[0])
                raise DeviceLost(str(error).partition("\n")[0]) from error
            raise

    return call


def _leave_alone(owner: object) -> None:
    """Never take an object apart: it owns pinned memory, and a failed device cannot be asked about it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


def pick_device(asked: str) -> tuple[torch.device, Device]:
    """The device behind "auto", "cpu", "cuda" or "cuda:1"."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={asked!r} is unknown: use 'auto', 'cpu' or 'cuda'") from error
    if device.type == "cpu":
        return device, Device("cpu", f"CPU, {torch.get_num_threads()} threads", 0)
    if device.type != "cuda":
        raise ValueError(f"device={asked!r} is not supported: use 'auto', 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise ValueError(f"device={asked!r}: torch sees no CUDA device; use device='cpu'")
    if device.index not in (None, torch.cuda.current_device()):
        raise ValueError(
            f"device={asked!r}: kernels run on the current device, cuda:{torch.cuda.current_device()}: call"
            f" torch.cuda.set_device({device.index}) first, or start with CUDA_VISIBLE_DEVICES={device.index}"
        )
    properties = torch.cuda.get_device_properties(device)
    return device, Device("cuda", properties.name, properties.total_memory)


def pick_dtype(asked: str, checkpoint: str, device: torch.device) -> torch.dtype:
    """The dtype behind "auto": the checkpoint's on a GPU, float32 on a CPU, where 16 bits are slow."""
    name = str(asked).removeprefix("torch.")
    if name == "auto":
        name = "float32" if device.type == "cpu" else checkpoint
        # A GPU computes 16 bits natively; vLLM too runs a float32 checkpoint in 16 bits there.
        name = "bfloat16" if device.type == "cuda" and name == "float32" else name
    if name not in _DTYPES:
        raise ValueError(f"dtype={asked!r} is unknown: use 'auto', {', '.join(map(repr, _DTYPES))}")
    return _DTYPES[name]


def num_kv_blocks(s: Settings, block_bytes: int, wanted: int, left: int | None) -> int:
    """Blocks of the KV pool: as told, or what memory allows; at most `wanted` on a CPU.

    `left`: bytes of a GPU that are left for the pool; None: a CPU.
    """
    if s.num_gpu_blocks_override is not None:
        return s.num_gpu_blocks_override
    if s.kv_cache_memory_bytes is not None:
        return s.kv_cache_memory_bytes // block_bytes
    return min(wanted, CPU_POOL // block_bytes) if left is None else left // block_bytes
