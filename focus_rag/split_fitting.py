"""Fit the split of a profile: whether to lean on the best scored passages, how far down the scores, how hard, among how many, and whether to go by
shared words where there are no scores.

A split takes the place of the directions wherever scores tell passages apart, so it has to gain over them, all cells of passage count and
noise together, by more than chance; and it may answer worse than the bare model, beyond the interval, in no cell. Of those that are not told
from the best the mildest is taken: the harder a split leans, the more it costs where scores are wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from focus_rag.alpha_fitting import pooled
from focus_rag.alpha_sweep import Estimate
from focus_rag.examples import Example
from focus_rag.fit_sweep import SweepCell
from focus_rag.score_split import ScoreSplit

Grades = Callable[[ScoreSplit, SweepCell], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Unsplit:
    """A cell as answered without a split.

    Attributes:
        cell: The cell.
        bare: Grade of each of its questions by the bare model.
        directions: And under the policy for alpha.
    """

    cell: SweepCell
    bare: Sequence[float]
    directions: Sequence[float]


@dataclass(frozen=True, slots=True)
class SplitTrial:
    """What one split reached.

    Attributes:
        split: The split, from the number of passages on at which it is best.
        columns: Grades in every cell, where it acts among any number.
        in_use: The same, with smaller cells left to the directions.
        gain: Over the directions, all cells with gold together.
        loses: Names of the cells in which it is worse than the bare model beyond the interval.
    """

    split: ScoreSplit
    columns: tuple[Sequence[float], ...]
    in_use: tuple[Sequence[float], ...]
    gain: Estimate
    loses: tuple[str, ...]

    @property
    def is_worth_it(self) -> bool:
        """Whether it gains by more than chance and is nowhere worse than the bare model beyond it."""
        return not self.loses and self.gain.low > 0

    def to_dict(self, cells: Sequence[Unsplit]) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.split.model_dump(),
            "gain": self.gain.to_dict(),
            "loses": list(self.loses),
            "cells": [
                {
                    "passages": one.cell.count,
                    "noise": one.cell.noise,
                    "gold_missing": one.cell.gold_missing,
                    "bare": Estimate.of(one.bare).to_dict(),
                    "directions": Estimate.of(one.directions).to_dict(),
                    "split": Estimate.of(column).to_dict(),
                }
                for one, column in zip(cells, self.columns, strict=True)
            ],
        }


def fit_split(
    cells: Sequence[Unsplit],
    reaches: Sequence[float],
    taus: Sequence[float],
    grades: Grades,
    progress: Callable[[int, int], None],
) -> tuple[SplitTrial | None, list[SplitTrial]]:
    """Choose a split: the exponent at the first reach, then the reach at that exponent; for each from how many passages on.

    Args:
        cells: What the sweep of alpha was measured on.
        reaches: To compare.
        taus: To compare.
        grades: Grades of a cell's questions under a split.
        progress: Called with splits done and splits in all.

    Returns:
        The best split, None where none is worth it, and everything that was tried. Questions whose scores tell no passages apart are split by
        the words they share with them; where those do not either, nothing is tried.
    """
    tried: list[SplitTrial] = []
    questions = [one for cell in cells for one in cell.cell.questions]
    words = not _is_told_apart(questions, reaches, words=False)
    if words and not _is_told_apart(questions, reaches, words=True):
        return None, tried
    first, *others = reaches
    # Among fewer passages than were measured nothing is known, and nothing is done.
    starts = sorted({max(one.cell.count, 2) for one in cells})

    def measure(reach: float, tau: float) -> None:
        split = ScoreSplit(reach=reach, tau=tau, words=words)
        columns = tuple(grades(split, one.cell) for one in cells)
        tried.append(max((_from(fewest, split, cells, columns) for fewest in starts), key=_worth))
        progress(len(tried), len(taus) + len(others))

    for tau in taus:
        measure(first, tau)
    chosen = _mildest_of_the_best(tried, cells)
    for reach in others:
        measure(reach, chosen.split.tau)
    chosen = _mildest_of_the_best(tried, cells)
    return (chosen if chosen.is_worth_it else None), tried


def by_words(split: ScoreSplit, cells: Sequence[Unsplit], grades: Grades) -> SplitTrial:
    """A split that was chosen by scores, where there are none: its passages are those that share most words with the question.

    Args:
        split: The split.
        cells: Questions without scores.
        grades: Grades of a cell's questions under a split.
    """
    split = split.model_copy(update={"words": True})
    return _from(split.fewest, split, cells, tuple(grades(split, one.cell) for one in cells))


def finds_gold(split: ScoreSplit, questions: Sequence[Example]) -> Estimate:
    """Share of the questions for which a gold passage is among those that a split favours: what makes or breaks it on another retrieval."""
    return Estimate.of([float(not one.gold.isdisjoint(_favoured(split, one))) for one in questions])


def _favoured(split: ScoreSplit, example: Example) -> tuple[int, ...]:
    """Passages of a question that a split favours, by scores or, where it goes by words, by those."""
    places = range(len(example.passages))
    found = split.favoured(example.passages, places, score_kind=example.score_kind)
    return found or split.favoured_by_words(example.question, example.passages, places, score_kind=example.score_kind)


def _from(fewest: int, split: ScoreSplit, cells: Sequence[Unsplit], columns: tuple[Sequence[float], ...]) -> SplitTrial:
    """A split that leaves smaller cells to the directions; its gain there is none."""
    in_use = tuple(column if one.cell.count >= fewest else one.directions for one, column in zip(cells, columns, strict=True))
    gain = _gain(in_use, [one.directions for one in cells], cells)
    loses = tuple(
        one.cell.name
        for one, column in zip(cells, columns, strict=True)
        if one.cell.count >= fewest and Estimate.of(_differences(column, one.bare)).high < 0
    )
    return SplitTrial(split.model_copy(update={"fewest": fewest}), columns, in_use, gain, loses)


def _mildest_of_the_best(tried: Sequence[SplitTrial], cells: Sequence[Unsplit]) -> SplitTrial:
    best = max(tried, key=_worth)
    equals = [one for one in tried if one.is_worth_it and _gain(best.in_use, one.in_use, cells).low <= 0]
    return max(equals, key=lambda one: (one.split.tau, _worth(one)), default=best)


def _gain(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]], cells: Sequence[Unsplit]) -> Estimate:
    """Of one list of columns over another, the cells with gold together."""
    rows = zip(cells, after, before, strict=True)
    return pooled([([each.key for each in one.cell.questions], _differences(new, old)) for one, new, old in rows if not one.cell.gold_missing])


def _is_told_apart(questions: Sequence[Example], reaches: Sequence[float], *, words: bool) -> bool:
    """Whether a split of any reach would favour any passage of any question."""
    splits = [ScoreSplit(reach=reach, words=words) for reach in reaches]
    return any(_favoured(split, one) for one in questions for split in splits)


def _worth(trial: SplitTrial) -> tuple[bool, float]:
    return not trial.loses, trial.gain.low


def _differences(after: Sequence[float], before: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(after, before, strict=True)]
