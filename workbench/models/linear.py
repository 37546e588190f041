"""A weight and its bias, laid out for the device that multiplies by them. Knows no model.

All choices are about CPUs; a GPU multiplies by [out, in]. Figures: the products of 8 layers of hidden 256 and
intermediate 768, float32, 2 AVX2 threads, torch 2.13:

    rows                                  1     4    16    64   256   1024
    MKL, storage [out, in], ms          2.6   4.9   6.7  10.3  28.2
    MKL, storage [in, out], ms          2.0   3.8   5.8   9.7  27.5   111
    oneDNN, packed, ms                  2.6   3.0   4.6   8.4  27.1   106
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.models import backend

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

_PACKED_ROWS = range(4, 129)  # where the packed copy is faster
# oneDNN compiles a kernel for each number of rows it meets, 3 ms each: rows are rounded up to a few numbers.
_ROW_STEP = 8


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias."""

    weight: Tensor  # [out, in], model dtype, device; its storage may be [in, out]
    bias: Tensor | None  # [out], model dtype, device
    product: Product
    packed: Tensor | None = None  # copy of weight in oneDNN's own order (opaque)

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] -> [T, out], dtype of x."""
        if self.packed is not None and x.shape[0] in _PACKED_ROWS:
            return _packed_product(x, self.packed, self.bias)
        return self.product(x, self.weight, self.bias)


def empty_linear(out_size: int, in_size: int, bias: bool, device: torch.device, dtype: torch.dtype) -> Linear:
    """Memory for a weight and its bias, to be filled through `weight` and `bias`."""
    # The bfloat16 product, unlike that of float32, is 7 times slower by [in, out].
    if device.type == "cpu" and dtype == torch.float32 and not backend.has_kernels(device):
        weight = torch.empty(in_size, out_size, device=device, dtype=dtype).t()
    else:
        weight = torch.empty(out_size, in_size, device=device, dtype=dtype)
    added = torch.empty(out_size, device=device, dtype=dtype) if bias else None
    return Linear(weight, added, _product_of(weight, added))


def product(device: torch.device, dtype: torch.dtype) -> Product:
    """What multiplies fastest on `device` in `dtype`."""
    if device.type == "cpu" and dtype != torch.float32 and not _multiplies_natively(dtype):
        return _widened
    if backend.has_kernels(device):
        from workbench.models import products

        return products.product
    return F.linear


def _product_of(weight: Tensor, bias: Tensor | None) -> Product:
    """What multiplies fastest by this weight."""
    if backend.has_kernels(weight.device):
        from workbench.models import products

        return products.product_of(weight, bias)
    return product(weight.device, weight.dtype)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `pack` works and pays: float32 on several threads of a CPU, by a torch that has oneDNN.

    On one thread it gains nothing: 64 rows of the table above take 14.1 ms by MKL, 14.0 packed.
    """
    return (
        device.type == "cpu"
        and not backend.has_kernels(device)
        and torch.get_num_threads() > 1
        and dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def pack(linear: Linear) -> Linear:
    """The same linear with a second copy of its weight, for batches of a few to a hundred rows."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    return replace(linear, packed=reorder(linear.weight.contiguous(), _PACKED_ROWS[-1] // 2))


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.shape[0]
    if rows % _ROW_STEP:
        x = F.pad(x, (0, 0, 0, -rows % _ROW_STEP))
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")
    return out[:rows]


def _multiplies_natively(dtype: torch.dtype) -> bool:
    """Whether torch vectorises products of `dtype` on this CPU; otherwise they take 8 times float32's."""
    return dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product in float32, rounded once at the end.

    64 × 256 times 256 × 1536 in bfloat16 on one AVX2 thread: 0.7 ms, 5.9 without the detour; float32 0.63.
    """
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(x.dtype)
