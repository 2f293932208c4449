"""Alpha, the strength of the focus: a function of how many passages were retrieved and how noisy they are."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from focus_rag.passages import RetrievalSignal


@dataclass(frozen=True, slots=True)
class AlphaChoice:
    """The intervention factor of one request, and why.

    Attributes:
        alpha: Factor of the focus directions; 0 leaves the model as it is.
        reason: One sentence for people.
    """

    alpha: float
    reason: str


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FixedAlpha(_Policy):
    """The same alpha for every request, whatever was retrieved: explicit wins."""

    kind: Literal["fixed"] = "fixed"
    alpha: float

    def choose(self, signal: RetrievalSignal) -> AlphaChoice:
        """`alpha`, always."""
        return AlphaChoice(self.alpha, f"alpha fixed at {self.alpha:g}")


class RetrievalAlpha(_Policy):
    """The prior for models that nobody calibrated: more passages and more noise ask for more focus.

    ``alpha = ceiling * noise * (n - 1) / (n - 1 + half_count - 1)``: 0 for one passage or none and for
    retrievals without noise, monotone in both, below `ceiling` always. With the defaults 20 passages of which
    one is relevant get 0.24, within the 0.2 to 0.3 that Zhu et al. (arXiv 2503.23306) use for theirs.

    Attributes:
        ceiling: Alpha of infinitely many irrelevant passages. It scales with the directions of the profile in
            use.
        half_count: Number of passages at which half of the ceiling is reached (at noise 1).
    """

    kind: Literal["retrieval"] = "retrieval"
    ceiling: float = Field(default=0.3, ge=0.0)
    half_count: float = Field(default=5.0, gt=1.0)

    def choose(self, signal: RetrievalSignal) -> AlphaChoice:
        """Alpha of the formula above."""
        if signal.n_passages <= 1:
            return _nothing_to_choose(signal)
        others = signal.n_passages - 1
        alpha = self.ceiling * signal.noise * (others / (others + self.half_count - 1))
        return AlphaChoice(alpha, _because(signal))


class FittedAlpha(_Policy):
    """Alpha measured on labelled questions: a grid over passage count and noise, bilinear between its knots.

    Interpolation runs over (log count, noise), so it is monotone wherever the knots are and never leaves
    their range; outside the grid the nearest edge holds. Among fewer passages than the first count above 1 it is 0:
    there nothing was measured.

    Attributes:
        counts: Passage counts of the knots, rising, at least 1.
        noises: Noises of the knots, rising, in [0, 1].
        alphas: `alphas[i][j]` belongs to `counts[i]` and `noises[j]`; shape (counts, noises), not negative.
        needs_order: The directions rely on where a retriever puts the relevant passage and are not shown to be harmless
            elsewhere, so alpha is 0 where the scores say that passages do not stand best first.
    """

    kind: Literal["fitted"] = "fitted"
    counts: tuple[int, ...] = Field(min_length=1)
    noises: tuple[float, ...] = Field(min_length=1)
    alphas: tuple[tuple[float, ...], ...]
    needs_order: bool = False

    @model_validator(mode="after")
    def _check_grid(self) -> FittedAlpha:
        if self.counts[0] < 1 or not _rises(self.counts):
            raise ValueError(f"counts must rise strictly from at least 1, got {self.counts}")
        if self.noises[0] < 0 or self.noises[-1] > 1 or not _rises(self.noises):
            raise ValueError(f"noises must rise strictly within [0, 1], got {self.noises}")
        if len(self.alphas) != len(self.counts) or any(len(row) != len(self.noises) for row in self.alphas):
            raise ValueError(
                f"alphas must have one row for each of {len(self.counts)} counts "
                f"and one column for each of {len(self.noises)} noises"
            )
        if any(alpha < 0 for row in self.alphas for alpha in row):
            raise ValueError("alphas must not be negative: a negative alpha distracts")
        return self

    @property
    def _fewest_measured(self) -> int:
        """The first knot with several passages; that of a single one is known without measuring."""
        return next((count for count in self.counts if count > 1), 1)

    @property
    def focuses(self) -> bool:
        """Whether any request gets an alpha other than 0."""
        return any(alpha for row in self.alphas for alpha in row)

    def choose(self, signal: RetrievalSignal) -> AlphaChoice:
        """Alpha of the surface at this count and noise; 0 among fewer passages than were measured."""
        if signal.n_passages <= 1:
            return _nothing_to_choose(signal)
        if signal.n_passages < self._fewest_measured:
            return AlphaChoice(
                0.0,
                f"{signal.n_passages} passages, and alpha was fitted for {self._fewest_measured} and more: the model "
                "is left as it is",
            )
        if self.needs_order and signal.in_order is False:
            return AlphaChoice(
                0.0,
                "the passages do not stand in the order of their scores, which this profile relies on: the model is "
                "left as it is",
            )
        i, up = _place([math.log(count) for count in self.counts], math.log(signal.n_passages))
        j, right = _place(self.noises, signal.noise)
        low = _between(self.alphas[i], j, right)
        high = _between(self.alphas[i + 1], j, right) if up else low
        return AlphaChoice(low + up * (high - low), _because(signal))


AlphaPolicy = Annotated[FixedAlpha | RetrievalAlpha | FittedAlpha, Field(discriminator="kind")]


def _because(signal: RetrievalSignal) -> str:
    return f"{signal.n_passages} passages, noise {signal.noise:.2f} ({signal.reason})"


def _nothing_to_choose(signal: RetrievalSignal) -> AlphaChoice:
    passages = "one passage" if signal.n_passages == 1 else "no passages"
    return AlphaChoice(0.0, f"{passages}: nothing to choose from, the model is left as it is")


def _rises(values: Sequence[float]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))


def _place(knots: Sequence[float], x: float) -> tuple[int, float]:
    """Index of the knot at or below `x`, and how far towards the next one `x` lies, in [0, 1)."""
    if x <= knots[0]:
        return 0, 0.0
    if x >= knots[-1]:
        return len(knots) - 1, 0.0
    i = bisect_right(knots, x) - 1
    return i, (x - knots[i]) / (knots[i + 1] - knots[i])


def _between(row: Sequence[float], j: int, right: float) -> float:
    return row[j] + right * (row[j + 1] - row[j]) if right else row[j]
