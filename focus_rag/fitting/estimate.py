"""Means of a fit, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.96
_SAME = 1e-9  # by which grades differ that only rounding tells apart


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% confidence interval (normal approximation, but where all values are the same).

    Attributes:
        mean: The mean.
        low: Lower limit.
        high: Upper limit.
        n: Number of questions.
    """

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Mean of independent values; of none, which is 0, and of one the interval is all there is.

        Values that are all the same rule nothing out by their spread. Others may be as many as would still not have
        been met in 95 of 100 such samples (the exact limit for a share, Clopper and Pearson 1934), one off.
        """
        n = len(values)
        mean = sum(values) / max(n, 1)
        if n < 2:
            return cls(mean, -1.0, 1.0, n)
        variance = sum((value - mean) ** 2 for value in values) / (n - 1)
        half = Z_95 * math.sqrt(variance / n) if max(values) - min(values) > _SAME else 1.0 - 0.025 ** (1 / n)
        return cls(mean, max(mean - half, -1.0), min(mean + half, 1.0), n)

    @property
    def standard_error(self) -> float:
        return max(self.mean - self.low, self.high - self.mean) / Z_95

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
