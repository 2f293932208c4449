"""What competes in a fit: numbers of heads and losses, and what each of them reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from focus_rag.alpha_fitting import Estimate
from focus_rag.direction_training import LossKind
from focus_rag.head_scoring import Head


@dataclass(frozen=True, slots=True)
class Variant:
    """Heads with directions that compete in the choice."""

    name: str
    loss: LossKind
    heads: tuple[Head, ...]
    directions: torch.Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """What one variant reached at one alpha."""

    variant: Variant
    alpha: float
    quality: Estimate
    gain: Estimate

    def worth(self) -> tuple[float, float, int]:
        """The gain that is sure; of equal ones the mean decides, then the fewer heads."""
        return (self.gain.low, self.gain.mean, -len(self.variant.heads))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "variant": self.variant.name,
            "loss": self.variant.loss,
            "heads": len(self.variant.heads),
            "alpha": self.alpha,
            "quality": self.quality.to_dict(),
            "gain": self.gain.to_dict(),
        }


def variant_of(name: str, loss: LossKind, heads: Sequence[Head], training: dict[str, Any]) -> Variant:
    """Pick some heads of a training."""
    place = {tuple(head): index for index, head in enumerate(training["heads"])}
    directions = torch.tensor([training["directions"][place[head]] for head in heads])
    return Variant(name, loss, tuple(heads), directions)
