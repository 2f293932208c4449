"""What competes in a fit: numbers of heads and losses, and what each of them reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from focus_rag.fitting.direction_training import LossKind
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.head_scoring import Head


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


def choose_variant(
    trainings: Mapping[LossKind, dict[str, Any]],
    contextual: Sequence[Head],
    control: Sequence[Head],
    counts: Sequence[int],
    alphas: Sequence[float],
    *,
    bare: Sequence[float],
    grades: Callable[[Variant, float], Sequence[float]],
    polished: Callable[[Variant], Variant] | None,
    progress: Callable[[int, int], None],
) -> tuple[Variant, list[Row]]:
    """Number of heads first, then the loss at that number, then the polish, by answer quality; random heads are
    measured and never chosen.

    Args:
        trainings: What was trained with each loss; the first loss decides the number of heads.
        contextual: Heads, best first.
        control: Random other heads, as many.
        counts: Numbers of heads to compare.
        alphas: Alphas to compare them at.
        bare: Grades of the bare model.
        grades: Grades of a variant at an alpha, of the same questions.
        polished: Polishes a variant; None leaves the polish out.
        progress: Called with measurements done and measurements in all.

    Returns:
        The best variant, and everything that was measured.
    """
    first, *others = trainings
    rows: list[Row] = []
    total = (len(counts) + len(others) + 1 + 2 * (polished is not None)) * len(alphas)

    def measure(variant: Variant) -> None:
        for alpha in alphas:
            found = grades(variant, alpha)
            gain = Estimate.of([after - before for after, before in zip(found, bare, strict=True)])
            rows.append(Row(variant, alpha, Estimate.of(found), gain))
            progress(len(rows), total)

    for count in counts:
        measure(variant_of(f"{first}-{count}", first, contextual[:count], trainings[first]))
    best_count = len(max(rows, key=Row.worth).variant.heads)
    for loss in others:
        measure(variant_of(f"{loss}-{best_count}", loss, contextual[:best_count], trainings[loss]))
    best = max(rows, key=Row.worth).variant
    if polished is not None:
        measure(polished(best))
        best = max(rows, key=Row.worth).variant
    random_heads = variant_of(f"random-{best_count}", best.loss, control[:best_count], trainings[best.loss])
    measure(random_heads)
    if polished is not None:
        measure(polished(random_heads))
    return best, rows
