"""The sweep of a fit: which retrievals alpha is tried on, and how far up the grid of alphas it is worth going."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from focus_rag.examples import Example
from focus_rag.fitting.alpha_fitting import best_single_alpha, pooled
from focus_rag.fitting.alpha_sweep import Sweep, sweep_of
from focus_rag.fitting.asking import examples_at, is_answered_elsewhere
from focus_rag.fitting.calm_examples import calmed
from focus_rag.passages import Passage


@dataclass(frozen=True, slots=True)
class SweepCell:
    """Questions with one passage count and noise, see `Sweep`; `has_scores` tells them from the same ones without their
    scores.
    """

    count: int
    noise: float
    questions: tuple[Example, ...]
    gold_missing: bool = False
    has_scores: bool = True

    @property
    def name(self) -> str:
        """For files of results."""
        noise = "missing" if self.gold_missing else f"{self.noise:g}"
        return f"{self.count}-{noise}{'' if self.has_scores else '-unscored'}"

    def without_scores(self) -> SweepCell:
        """The same questions, as a retriever without scores hands them on."""
        return replace(self, questions=tuple(one.without_scores() for one in self.questions), has_scores=False)


def cells_of(
    dev: Sequence[Example], pool: Sequence[Passage], counts: Sequence[int], noises: Sequence[float], fewest: int
) -> tuple[list[SweepCell], list[str]]:
    """The cells of a sweep, and warnings about those that cannot be had.

    Args:
        dev: Questions to answer.
        pool: Passages that calm the questions, see `calm_examples.calmed`.
        counts: Passage counts, rising.
        noises: Shares of the distractors that stay; 1, as retrieved, is always among them.
        fewest: Calm cells with fewer questions are left out.
    """
    cells: list[SweepCell] = []
    warnings: list[str] = []
    for noise in sorted({1.0, *noises}, reverse=True):
        short: list[int] = []
        for count in counts:
            made = (calmed(one, count, noise, pool) for one in dev if len(one.passages) >= count)
            questions = tuple(one for one in made if one is not None)
            if noise == 1 or (count > 1 and len(questions) >= fewest):
                cells.append(SweepCell(count, noise, questions))
            elif count > 1:
                short.append(count)
        if short:
            warnings.append(
                f"No retrievals of noise {noise:g} could be made at {', '.join(map(str, short))} passages, because "
                "the examples share most of their passages. Alpha is fitted there on retrievals as noisy as the "
                "examples alone and may do harm in calmer ones: add examples over other documents."
            )
    # Whether a model still says that nothing is stated is a guard, not the aim: one count, half of the questions.
    if counts[-1] > 1:
        questions = tuple(one for one in examples_at(dev, counts[-1]) if not is_answered_elsewhere(one))
        if questions:
            cells.append(SweepCell(counts[-1], 1.0, questions[: max(len(questions) // 2, 1)], gold_missing=True))
    return cells, warnings


def climb(
    cells: Sequence[SweepCell],
    alphas: Sequence[float],
    grades: Callable[[SweepCell, float], Sequence[float]],
    progress: Callable[[int, int], None],
) -> list[Sweep]:
    """Answer every cell bare and at rising alphas, until one is beyond doubt worse than the best single one before it.

    Args:
        cells: The cells.
        alphas: Rising, without 0.
        grades: Grades of a cell's questions at an alpha.
        progress: Called with how many cells at one alpha are done, and how many there are at most.

    Returns:
        One sweep per cell, all over the same alphas.
    """
    total = len(cells) * (len(alphas) + 1)
    columns: list[dict[float, Sequence[float]]] = [{} for _ in cells]
    sweeps: list[Sweep] = []
    for step, alpha in enumerate((0.0, *alphas)):
        for place, cell in enumerate(cells):
            columns[place][alpha] = grades(cell, alpha)
            progress(step * len(cells) + place + 1, total)
        sweeps = [
            sweep_of(cell.count, cell.noise, cell.questions, found, gold_missing=cell.gold_missing)
            for cell, found in zip(cells, columns, strict=True)
        ]
        present = [sweep for sweep in sweeps if not sweep.gold_missing]
        best = best_single_alpha(present)
        if pooled([(one.keys, one.differences(alpha, best)) for one in present]).high < 0:
            progress(total, total)
            break
    return sweeps
