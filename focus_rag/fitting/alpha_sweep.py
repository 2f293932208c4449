"""Answer quality of the same questions at several alphas: what a policy for alpha is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_rag.examples import Example
from focus_rag.fitting.asking import shown_passages
from focus_rag.fitting.estimate import Estimate
from focus_rag.noise import signal_of
from focus_rag.passages import RetrievalSignal


@dataclass(frozen=True, slots=True)
class Sweep:
    """Answer quality at several alphas, in one cell of passage count and noise.

    Attributes:
        count: Passages per question.
        alphas: The grid, 0 first.
        quality: `quality[i][j]`: question i at `alphas[j]`; 1 for a right answer, else 0.
        signals: What the retrieval of each question tells the policy.
        keys: Names of the questions: one that stands in several cells has one name.
        noise: Share of the passages beside the gold that are as retrieved, see `calm_examples.calmed`.
        gold_missing: Whether the gold passages were taken away, so that saying so is the right answer.
    """

    count: int
    alphas: tuple[float, ...]
    quality: tuple[tuple[float, ...], ...]
    signals: tuple[RetrievalSignal, ...]
    keys: tuple[str, ...]
    noise: float = 1.0
    gold_missing: bool = False

    def column(self, alpha: float) -> list[float]:
        """Quality of every question at one alpha of the grid."""
        index = self.alphas.index(alpha)
        return [row[index] for row in self.quality]

    def differences(self, alpha: float, other: float = 0.0) -> list[float]:
        """Quality of every question at one alpha of the grid minus that at another, by default the bare model's."""
        index, against = self.alphas.index(alpha), self.alphas.index(other)
        return [row[index] - row[against] for row in self.quality]

    def gain(self, alpha: float) -> Estimate:
        """Mean paired gain over the bare model."""
        return Estimate.of(self.differences(alpha))

    def regret(self, alpha: float) -> float:
        """How far quality at one alpha lies below that at each question's own best alpha, on average."""
        index = self.alphas.index(alpha)
        return sum(max(row) - row[index] for row in self.quality) / max(len(self.quality), 1)

    def at(self, question: int, alpha: float) -> float:
        """Quality of one question, linear between the alphas of the grid and level beyond them."""
        above = next((index for index, one in enumerate(self.alphas) if one >= alpha), len(self.alphas) - 1)
        row = self.quality[question]
        if above == 0 or alpha >= self.alphas[above]:
            return row[above]
        share = (alpha - self.alphas[above - 1]) / (self.alphas[above] - self.alphas[above - 1])
        return row[above - 1] + share * (row[above] - row[above - 1])


def sweep_of(
    count: int,
    noise: float,
    examples: Sequence[Example],
    columns: dict[float, Sequence[float]],
    *,
    gold_missing: bool = False,
) -> Sweep:
    """The sweep of one cell, from a column of grades per alpha."""
    alphas = tuple(sorted(columns))
    return Sweep(
        count=count,
        alphas=alphas,
        quality=tuple(zip(*(columns[alpha] for alpha in alphas), strict=True)),
        signals=tuple(signal_of(shown_passages(one, gold_missing), score_kind=one.score_kind) for one in examples),
        keys=tuple(one.key for one in examples),
        noise=noise,
        gold_missing=gold_missing,
    )
