"""How sure the figures are: bootstrap intervals, paired differences and the test that goes with them.

Everything is seeded and vectorised; the same values give the same numbers in any order of calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from focus_rag.errors import InvalidInputError
from focus_rag.fitting.estimate import SAME, unseen_share

_RESAMPLES = 2000
_LEVEL = 0.05
_BLOCK = 2_000_000  # values drawn at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval.

    Attributes:
        mean: The mean; NaN of no values.
        low: Lower end.
        high: Upper end.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two methods on the same questions.

    Attributes:
        mean: Mean of (method - reference).
        low: Lower end of the 95% interval.
        high: Upper end.
        p: Two-sided probability of a difference at least this large if neither were better.
        n: Number of questions.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def is_better(self) -> bool:
        """Whether interval and test agree that the method is better; with few changed questions either alone says so
        too soon.
        """
        return self.low > 0 and self.p < _LEVEL

    @property
    def is_worse(self) -> bool:
        """Whether interval and test agree that the method is worse."""
        return self.high < 0 and self.p < _LEVEL

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return asdict(self)


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """Mean with a percentile bootstrap interval (Efron 1979).

    Where every question is right, or none is, resampling only ever finds the same again; the open end is then the exact
    one for a share (Clopper and Pearson 1934).

    Args:
        values: One per question.
        seed: Of the resampling.
        resamples: How many.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    if (array == array[0]).all() and array[0] in (0.0, 1.0):
        unseen = unseen_share(array.size)
        low, high = (1.0 - unseen, 1.0) if array[0] == 1.0 else (0.0, unseen)
    else:
        low, high = np.quantile(_resampled_means(array, seed, resamples), [_LEVEL / 2, 1 - _LEVEL / 2])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))


def paired_difference(
    method: Sequence[float], reference: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES
) -> Difference:
    """Difference on the same questions, with a bootstrap interval and a test.

    Where all differ alike the ends are how far off the mean may be when no other difference is met among so many (the
    exact limit for a share).

    The test is exact for values that differ by one size only (McNemar's exact test, which for right and wrong is a sign
    test on the questions that changed), else a sign-flip permutation test with `resamples` draws.

    Raises:
        InvalidInputError: The two are not equally long.
    """
    if len(method) != len(reference):
        raise InvalidInputError(
            f"A paired difference needs the same questions on both sides; got {len(method)} and {len(reference)}."
        )
    difference = np.asarray(method, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    if difference.size == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0)
    if np.ptp(difference) < SAME:  # resampling only ever finds the same again
        unseen = unseen_share(difference.size)
        low, high = max(difference[0] - unseen, -1.0), min(difference[0] + unseen, 1.0)
    else:
        low, high = np.quantile(_resampled_means(difference, seed, resamples), [_LEVEL / 2, 1 - _LEVEL / 2])
    changed = difference[difference != 0]
    if changed.size == 0:
        p = 1.0
    elif np.allclose(np.abs(changed), np.abs(changed[0])):
        p = sign_test(int((changed > 0).sum()), int(changed.size))
    else:
        p = _sign_flip(changed, seed, resamples)
    return Difference(float(difference.mean()), float(low), float(high), p, int(difference.size))


def sign_test(better: int, changed: int) -> float:
    """Two-sided exact binomial probability of `better` or something more extreme out of `changed` fair coins."""
    if changed == 0:
        return 1.0
    tail = min(better, changed - better)
    # Log-space: 2 ** -changed underflows for large samples.
    logs = [
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1) - changed * math.log(2)
        for k in range(tail + 1)
    ]
    return min(1.0, 2 * sum(math.exp(value) for value in logs))


def _sign_flip(changed: np.ndarray, seed: int, resamples: int) -> float:
    generator = np.random.default_rng(seed)
    observed = abs(changed.sum())
    extreme = 0
    for _ in range(resamples):
        signs = generator.integers(0, 2, changed.size) * 2 - 1
        extreme += abs((signs * changed).sum()) >= observed - 1e-12
    return (extreme + 1) / (resamples + 1)


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // values.size)
    parts = []
    for start in range(0, resamples, block):
        picks = generator.integers(0, values.size, (min(block, resamples - start), values.size))
        parts.append(values[picks].mean(axis=1))
    return np.concatenate(parts)
