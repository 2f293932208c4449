"""Means of a fit, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.96
SAME = 1e-9
"""By which values differ that only rounding tells apart."""


def unseen_share(n: int) -> float:
    """The largest share of questions that would not be met among n with a chance of one in 40: the exact end of a 95%
    interval around none of them, or all (Clopper and Pearson 1934).
    """
    return float(1.0 - 0.025 ** (1 / n))


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

        Values that are all the same rule nothing out by their spread: others, one off, may be as many as go unseen
        among so few.
        """
        n = len(values)
        mean = sum(values) / max(n, 1)
        if n < 2:
            return cls(mean, -1.0, 1.0, n)
        variance = sum((value - mean) ** 2 for value in values) / (n - 1)
        half = Z_95 * math.sqrt(variance / n) if max(values) - min(values) > SAME else unseen_share(n)
        return cls(mean, max(mean - half, -1.0), min(mean + half, 1.0), n)

    @property
    def standard_error(self) -> float:
        return max(self.mean - self.low, self.high - self.mean) / Z_95

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}
