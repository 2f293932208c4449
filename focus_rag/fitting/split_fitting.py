"""Fit the split of a profile: whether to lean on the best scored passages, how far down the scores, how hard, among how
many, and whether the words that passages share with the question count too.

A split takes the place of the directions wherever scores tell passages apart, so it has to gain over them, all cells of
passage count and noise together, by more than the best of all that are tried would by chance; and it may answer worse
than the bare model, beyond the interval, in no cell. Of those that are not told from the best the mildest is taken: the
harder a split leans, the more it costs where scores are wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from focus_rag.examples import Example
from focus_rag.fitting.alpha_fitting import pooled
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.more_than_chance import contributions, more_than_chance
from focus_rag.fitting.sweep_cells import SweepCell
from focus_rag.passage_ranking import Signal
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
        is_certain: Whether it gains by more than chance, those tried beside it considered.
    """

    split: ScoreSplit
    columns: tuple[Sequence[float], ...]
    in_use: tuple[Sequence[float], ...]
    gain: Estimate
    loses: tuple[str, ...]
    is_certain: bool = False

    @property
    def is_worth_it(self) -> bool:
        """Whether it gains by more than chance and is nowhere worse than the bare model beyond it."""
        return not self.loses and self.is_certain

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
    """Choose a split: what it goes by, the exponent at the first reach, then the reach at that exponent; for each from
    how many passages on.

    Args:
        cells: What the sweep of alpha was measured on.
        reaches: To compare.
        taus: To compare.
        grades: Grades of a cell's questions under a split.
        progress: Called with splits done and splits in all.

    Returns:
        The best split, None where none is worth it, and everything that was tried. Where neither scores nor words tell
        passages apart nothing is.
    """
    largest = max(
        (one.cell for one in cells if not one.cell.gold_missing),
        key=lambda cell: (cell.count, cell.noise),
        default=None,
    )
    by = None if largest is None or not reaches else _signal(largest.questions, reaches[0])
    if by is None:
        return None, []
    first, *others = reaches
    # Among fewer passages than were measured nothing is known, and nothing is done.
    starts = sorted({max(one.cell.count, 2) for one in cells})
    measured: list[SplitTrial] = []

    def measure(reach: float, tau: float) -> None:
        split = ScoreSplit(reach=reach, tau=tau, by=by)
        columns = tuple(grades(split, one.cell) for one in cells)
        measured.extend(_from(fewest, split, cells, columns) for fewest in starts)
        progress(len(measured) // len(starts), len(taus) + len(others))

    for tau in taus:
        measure(first, tau)
    chosen = _mildest_of_the_best(_best_starts(measured, cells), cells)
    for reach in others:
        measure(reach, chosen.split.tau)
    tried = _best_starts(measured, cells)
    chosen = _mildest_of_the_best(tried, cells)
    return (chosen if chosen.is_worth_it else None), tried


def by_words_alone(split: ScoreSplit, cells: Sequence[Unsplit], grades: Grades) -> SplitTrial:
    """A split that was chosen with scores, where there are none: its passages are those that share most words with the
    question.

    Args:
        split: The split.
        cells: Questions without scores.
        grades: Grades of a cell's questions under a split.
    """
    split = split.model_copy(update={"without_scores": True})
    alone = _from(split.fewest, split, cells, tuple(grades(split, one.cell) for one in cells))
    return _judged([alone], cells)[0]


def gold_shares(by: Signal, reach: float, questions: Sequence[Example]) -> list[float]:
    """Which share of the passages that a split favours is gold, of each question; none of none."""
    favoured = [_favoured(ScoreSplit(reach=reach, by=by), one) for one in questions]
    return [
        len(one.gold.intersection(found)) / max(len(found), 1) for one, found in zip(questions, favoured, strict=True)
    ]


def finds_gold(split: ScoreSplit, questions: Sequence[Example]) -> Estimate:
    """Share of the questions for which a gold passage is among those that a split favours: what makes or breaks it on
    another retrieval.
    """
    return Estimate.of([float(not one.gold.isdisjoint(_favoured(split, one))) for one in questions])


def _favoured(split: ScoreSplit, example: Example) -> tuple[int, ...]:
    return split.favoured(
        example.passages, range(len(example.passages)), example.question, score_kind=example.score_kind
    ).passages


def _from(fewest: int, split: ScoreSplit, cells: Sequence[Unsplit], columns: tuple[Sequence[float], ...]) -> SplitTrial:
    """A split that leaves smaller cells to the directions; its gain there is none."""
    in_use = tuple(
        column if one.cell.count >= fewest else one.directions for one, column in zip(cells, columns, strict=True)
    )
    gain = _gain(in_use, [one.directions for one in cells], cells)
    loses = tuple(
        one.cell.name
        for one, column in zip(cells, columns, strict=True)
        if one.cell.count >= fewest and Estimate.of(_differences(column, one.bare)).high < 0
    )
    return SplitTrial(split.model_copy(update={"fewest": fewest}), columns, in_use, gain, loses)


def _best_starts(measured: Sequence[SplitTrial], cells: Sequence[Unsplit]) -> list[SplitTrial]:
    """Each split from the number of passages on at which it is best, of all that were measured at every one."""
    groups = itertools.groupby(_judged(measured, cells), key=lambda one: (one.split.reach, one.split.tau))
    return [max(group, key=_worth) for _, group in groups]


def _judged(measured: Sequence[SplitTrial], cells: Sequence[Unsplit]) -> list[SplitTrial]:
    """With the verdict whether each gains by more than chance, all of them considered."""
    before = [one.directions for one in cells]
    certain = more_than_chance([contributions(_gains(one.in_use, before, cells)) for one in measured])
    return [replace(one, is_certain=verdict) for one, verdict in zip(measured, certain, strict=True)]


def _mildest_of_the_best(tried: Sequence[SplitTrial], cells: Sequence[Unsplit]) -> SplitTrial:
    best = max(tried, key=_worth)
    equals = [one for one in tried if one.is_worth_it and _gain(best.in_use, one.in_use, cells).low <= 0]
    return max(equals, key=lambda one: (one.split.tau, _worth(one)), default=best)


def _gain(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]], cells: Sequence[Unsplit]) -> Estimate:
    """Of one list of columns over another, the cells with gold together."""
    return pooled(_gains(after, before, cells))


def _gains(
    after: Sequence[Sequence[float]], before: Sequence[Sequence[float]], cells: Sequence[Unsplit]
) -> list[tuple[list[str], list[float]]]:
    """Of one list of columns over another, for each cell with gold the names of its questions and their gains."""
    return [
        ([each.key for each in one.cell.questions], _differences(new, old))
        for one, new, old in zip(cells, after, before, strict=True)
        if not one.cell.gold_missing
    ]


def _signal(questions: Sequence[Example], reach: float) -> Signal | None:
    """Scores and words together, unless one of them alone tells the gold passages for certain better, or words add
    nothing; None if nothing tells any.
    """
    shares: dict[Signal, list[float]] = {by: gold_shares(by, reach, questions) for by in get_args(Signal)}
    best: Signal = max(shares, key=lambda by: sum(shares[by]))
    if not any(shares[best]):
        return None
    if Estimate.of(_differences(shares[best], shares["both"])).low > 0:
        return best
    return "scores" if shares["both"] == shares["scores"] else "both"


def _worth(trial: SplitTrial) -> tuple[bool, float]:
    return not trial.loses, trial.gain.low


def _differences(after: Sequence[float], before: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(after, before, strict=True)]
