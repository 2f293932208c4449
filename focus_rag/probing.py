"""Run a model on one ordinary token, to look at what its modules hand on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def run_one_token(model: nn.Module, position: int = 0) -> None:
    """One forward pass, eager even where the model is compiled; nothing is kept.

    Raises:
        TypeError: A position other than 0, which needs no saying, and a model that takes none.
    """
    plain: Any = getattr(model, "_orig_mod", model)
    device = input_device(plain)
    ids = torch.tensor([[_ordinary_token(plain)]], device=device)
    placed = {"position_ids": torch.tensor([[position]], device=device)} if position else {}
    plain(input_ids=ids, **placed, use_cache=False)


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go; offloaded models hold their parameters nowhere and move inputs themselves."""
    device: torch.device = model.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
    return torch.device("cpu") if device.type == "meta" else device


def _ordinary_token(model: nn.Module) -> int:
    """A token that is not padding, whose embedding many models hold at zero."""
    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    return min(size - 1, max(3, size // 3))
