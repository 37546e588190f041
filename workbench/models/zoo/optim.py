"""The optimizers: Muon for matrices, AdamW for embeddings and norms. Knows nothing of the model around them.

Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks") replaces a matrix's
momentum by the nearest orthogonal matrix, found by a few Newton-Schulz steps; the update is scaled to the
size AdamW's would have (Liu et al., 2025, arXiv:2502.16982). Matrices of one shape are updated together, as
one batch of products.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# The quintic whose iteration drives every singular value towards one, from Jordan et al.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices [n, rows, columns] with the given ones' singular vectors, in their dtype."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; weight decay apart from the gradient."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    shapes[param.shape].append(param)
            for params in shapes.values():
                self.update(params, group["lr"], group["momentum"], group["weight_decay"])

    def update(self, params: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        """One update of matrices of one shape."""
        grads = [param.grad for param in params if param.grad is not None]
        buffers = [self.state[param].setdefault("momentum", torch.zeros_like(param)) for param in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        ahead = torch._foreach_lerp(grads, buffers, momentum)
        updates = orthogonalised(torch.stack(ahead))
        scale = 0.2 * max(params[0].shape) ** 0.5  # root mean square of the update: about 0.2, as AdamW's
        torch._foreach_mul_(params, 1 - lr * weight_decay)
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr * scale)


def build(
    model: nn.Module, matrix_lr: float, other_lr: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices and AdamW for the rest."""
    matrices = [
        weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name
    ]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    fused = others[0].is_cuda
    return [
        Muon(matrices, lr=matrix_lr, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.95), eps=1e-9, weight_decay=0.0, fused=fused),
    ]


def plain(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """AdamW for all that learns."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return [torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=weights[0].is_cuda)]
