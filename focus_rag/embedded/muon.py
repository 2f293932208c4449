"""Muon over all matrices of one shape at a time.

torch's Muon goes through the matrices one by one, some 25 small kernels for each: on a GPU a model of this size waits
longer for their launches than for its own forward and backward pass. The step is the same (`tests/test_muon.py` holds
it against torch's).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_STEPS = 5
_SMALLEST_NORM = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, with the learning rate of tall matrices raised (Jordan et
    al. 2024).

    Args:
        matrices: Two-dimensional parameters.
        lr: Learning rate; times the root of rows over columns where there are more rows.
        weight_decay: Share of the learning rate by which weights shrink each step.
        momentum: Share of the momentum that is kept.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the matrices that have a gradient."""
        for group in self.param_groups:
            matrices = [one for one in group["params"] if one.grad is not None]
            if not matrices:
                continue
            gradients = [one.grad for one in matrices]
            momenta = [self._momentum(one) for one in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list[int]] = {}
            for index, one in enumerate(matrices):
                by_shape.setdefault(one.shape, []).append(index)
            for shape, members in by_shape.items():
                turned = orthogonal(torch.stack([updates[index] for index in members])).to(matrices[members[0]].dtype)
                rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_add_([matrices[index] for index in members], list(turned.unbind()), alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]  # type: ignore[no-any-return]


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices `(matrices, rows, columns)` brought near their closest orthogonal ones by five Newton-Schulz steps, in
    bfloat16.
    """
    first, second, third = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.bfloat16()
    found = found.mT if is_tall else found
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), found, beta=first)
    return found.mT if is_tall else found
