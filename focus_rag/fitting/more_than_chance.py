"""Which of many candidates gain by more than chance, where it is the best of them that is looked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

_FLIPS = 1999
_LEVEL = 0.025  # one-sided, as the lower end of a 95% interval


def contributions(cells: Sequence[tuple[Sequence[str], Sequence[float]]]) -> dict[str, float]:
    """What each question adds to the mean over cells of the mean of each.

    Args:
        cells: For each cell the names of its questions and one difference for each.
    """
    found: dict[str, float] = defaultdict(float)
    for keys, values in cells:
        for key, value in zip(keys, values, strict=True):
            found[key] += value / len(values) / len(cells)
    return dict(found)


def more_than_chance(candidates: Sequence[Mapping[str, float]]) -> list[bool]:
    """Which candidates gain by more than the best of as many that gain nothing would.

    If candidates were no better than what they are compared with, what a question adds could as well have the other
    sign, for all candidates at once. Signs are drawn for the questions; a candidate has to exceed, in units of its own
    spread, what the largest gain of all comes to in one draw of 40 (sign-flip test of the maximum, Westfall and Young
    1993). Ten that are looked at by an interval each would find something in one case of five.

    Args:
        candidates: Of each, what every question adds to its gain (`contributions`).
    """
    keys = sorted({key for one in candidates for key in one})
    if not keys:
        return [False] * len(candidates)
    added = np.array([[one.get(key, 0.0) for one in candidates] for key in keys])
    spread = np.sqrt((added**2).sum(axis=0))
    scaled = np.divide(added, spread, out=np.zeros_like(added), where=spread > 0)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_FLIPS, len(keys)))
    by_chance = (signs @ scaled).max(axis=1)
    gains = scaled.sum(axis=0)
    # The gain itself is one of the draws, and what equals it but for rounding is as large.
    as_large = (by_chance[:, None] >= gains[None, :] - 1e-9).sum(axis=0)
    return [bool(count + 1 <= _LEVEL * (_FLIPS + 1)) for count in as_large]
