"""What measured mass says of passages and their sentences: shares of the attention that they got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from focus_rag.attention.formulas import split_weights


def split_mass(mass: Tensor, favoured: Sequence[bool], tau: float) -> Tensor:
    """Mass on passages as split softmax leaves it: a meter reads queries and keys, which a split does not change.

    Args:
        mass: Measured probability mass `(..., passages)`.
        favoured: Whether the split leaned on each passage.
        tau: Its exponent.
    """
    return split_weights(mass, torch.tensor(favoured, device=mass.device), tau) if any(favoured) else mass


def attention_shares(
    steps: Sequence[Tensor], of_passage: Sequence[int], favoured: Sequence[bool], tau: float
) -> tuple[list[float], list[float]]:
    """Shares of the attention on passages, over heads and response rows: that of each passage, and that of each of
    their sentences.

    Args:
        steps: For every forward pass the mass `(heads, rows, spans)` on the passages, and behind them on the sentences,
            of its first row; behind those may be others.
        of_passage: Which passage each sentence belongs to.
        favoured: Whether split softmax leaned on each passage.
        tau: Its exponent.

    Returns:
        The shares; those of the passages add up to 1. Nothing where there are no passages, no steps, or no mass.
    """
    if not favoured or not steps:
        return [], []
    measured = torch.stack([step[:, 0, : len(favoured) + len(of_passage)] for step in steps])
    passages, sentences = measured.split([len(favoured), len(of_passage)], dim=-1)
    split = split_mass(passages, favoured, tau)
    sentences = sentences * torch.where(passages > 0, split / passages, 1.0)[..., list(of_passage)]
    mass, parts = split.mean(dim=(0, 1)), sentences.mean(dim=(0, 1))
    total = mass.sum()
    return ((mass / total).tolist(), (parts / total).tolist()) if total > 0 else ([], [])
