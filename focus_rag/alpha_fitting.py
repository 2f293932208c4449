"""Fit the alpha policy of a model: answer labelled questions at many alphas, keep what helps and leave the rest alone.

For every passage count the dev questions are answered bare and at each alpha of a grid. What counts is the paired gain over the
bare model, by its lower confidence limit, so alpha stays 0 wherever a gain cannot be told from chance. Over counts the best
sequence of alphas that never falls is chosen exactly, by dynamic programming.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from focus_rag.alpha import AlphaPolicy, FittedAlpha
from focus_rag.answers import GenerationSettings, Request
from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example, holds_answer
from focus_rag.generator import FocusGenerator
from focus_rag.noise import signal_of
from focus_rag.passages import Passage

NOT_STATED = "not stated"
"""What the prompt asks a model to say where the passages do not hold the answer."""

Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% confidence interval (normal approximation).

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
        """Mean of independent values; of none it is 0 with an interval of all there is."""
        n = len(values)
        if n == 0:
            return cls(0.0, -1.0, 1.0, 0)
        mean = sum(values) / n
        variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
        half = Z_95 * math.sqrt(variance / n)
        return cls(mean, mean - half, mean + half, n)

    def to_dict(self) -> dict[str, float]:
        """Plain JSON types."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True, slots=True)
class Sweep:
    """Answer quality of the same questions at several alphas, for one passage count.

    Attributes:
        count: Passages per question.
        alphas: The grid, 0 first.
        quality: `quality[i][j]`: question i at `alphas[j]`; 1 if an accepted answer stands in the text, else 0.
        noises: Noise of each question as its retrieval scores tell it, None where there are no scores.
        gold_missing: Whether the gold passages were taken away, so that saying so is the right answer.
    """

    count: int
    alphas: tuple[float, ...]
    quality: tuple[tuple[float, ...], ...]
    noises: tuple[float | None, ...]
    gold_missing: bool = False

    def column(self, alpha: float) -> list[float]:
        """Quality of every question at one alpha of the grid."""
        index = self.alphas.index(alpha)
        return [row[index] for row in self.quality]

    def gain(self, alpha: float, chosen: Sequence[int] | None = None) -> Estimate:
        """Paired gain over the bare model, of all questions or of chosen ones."""
        index = self.alphas.index(alpha)
        rows = self.quality if chosen is None else [self.quality[i] for i in chosen]
        return Estimate.of([row[index] - row[0] for row in rows])

    def regret(self, alpha: float) -> float:
        """How far quality at one alpha lies below that at each question's own best alpha, on average."""
        index = self.alphas.index(alpha)
        return sum(max(row) - row[index] for row in self.quality) / max(len(self.quality), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them."""
        return {
            "count": self.count,
            "alphas": list(self.alphas),
            "quality": [list(row) for row in self.quality],
            "noises": list(self.noises),
            "gold_missing": self.gold_missing,
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Sweep:
        """Read what `to_dict` wrote."""
        return cls(
            int(found["count"]),
            tuple(found["alphas"]),
            tuple(tuple(row) for row in found["quality"]),
            tuple(found["noises"]),
            bool(found["gold_missing"]),
        )


def answer_quality(text: str, answers: Sequence[str]) -> float:
    """1 if an accepted answer stands in the text as whole words, else 0."""
    return float(holds_answer(text, answers))


def without_gold(example: Example, count: int) -> tuple[Passage, ...]:
    """`count` of an example's passages without its gold ones, in order; fewer where there are not so many."""
    return tuple(passage for index, passage in enumerate(example.passages) if index not in example.gold)[:count]


def measure_quality(
    generator: FocusGenerator,
    examples: Sequence[Example],
    alpha: float | AlphaPolicy,
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
) -> list[float]:
    """Answer every example at one alpha and grade the answers.

    Args:
        generator: Model and profile.
        examples: Questions with the passages to show.
        alpha: A number or a policy.
        max_new_tokens: Longest answer.
        gold_missing: Take the gold passages away; the right answer is then that it is not stated.

    Returns:
        One grade per example, 0 or 1.
    """
    settings = GenerationSettings(max_new_tokens=max_new_tokens)
    requests = [
        Request(
            question=one.question,
            passages=without_gold(one, len(one.passages)) if gold_missing else one.passages,
            alpha=alpha,
            settings=settings,
        )
        for one in examples
    ]
    # Neighbours in length share a batch: less padding, the same answers.
    order = sorted(range(len(requests)), key=lambda i: sum(len(passage.text) for passage in requests[i].passages))
    answers = generator.answer_batch([requests[i] for i in order])
    wanted = [(NOT_STATED,) if gold_missing else one.answers for one in examples]
    grades = [0.0] * len(examples)
    for place, answer in zip(order, answers, strict=True):
        grades[place] = answer_quality(answer.text, wanted[place])
    return grades


def sweep_alphas(
    generator: FocusGenerator,
    examples: Sequence[Example],
    count: int,
    alphas: Sequence[float],
    *,
    max_new_tokens: int,
    gold_missing: bool = False,
    bare: Sequence[float] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Answer examples cut to `count` passages, bare and at every alpha.

    Args:
        generator: Model and profile.
        examples: Dev questions; those with fewer passages are left out.
        count: Passages per question.
        alphas: Grid without 0, rising.
        max_new_tokens: Longest answer.
        gold_missing: See `measure_quality`.
        bare: Grades of the bare model, if they are known.
        progress: Called with the number of alphas done.

    Raises:
        InvalidInputError: No example has so many passages, or the grid does not rise from above 0.
    """
    if list(alphas) != sorted(set(alphas)) or any(alpha <= 0 for alpha in alphas):
        raise InvalidInputError(
            f"alphas must rise from above 0 (the bare model is always measured); got {list(alphas)}."
        )
    cut = examples_at(examples, count)
    if not cut:
        raise InvalidInputError(
            f"No example has {count} passages; lower `counts` or retrieve more passages for the examples."
        )
    columns = [
        list(bare)
        if bare is not None
        else measure_quality(generator, cut, 0.0, max_new_tokens=max_new_tokens, gold_missing=gold_missing)
    ]
    for done, alpha in enumerate(alphas, start=1):
        columns.append(measure_quality(generator, cut, alpha, max_new_tokens=max_new_tokens, gold_missing=gold_missing))
        if progress is not None:
            progress(done)
    shown = [without_gold(one, count) if gold_missing else one.passages for one in cut]
    return Sweep(
        count=count,
        alphas=(0.0, *alphas),
        quality=tuple(zip(*columns, strict=True)),
        noises=tuple(score_noise(passages) for passages in shown),
        gold_missing=gold_missing,
    )


def examples_at(examples: Sequence[Example], count: int) -> list[Example]:
    """The examples that have so many passages, cut to `count`."""
    return [one.at_count(count) for one in examples if len(one.passages) >= count]


def score_noise(passages: Sequence[Passage]) -> float | None:
    """Noise as the retrieval scores tell it; None where they say no more than the count does."""
    signal = signal_of(passages)
    return signal.noise if signal.source == "scores" else None


@dataclass(frozen=True, slots=True)
class PolicyFit:
    """A fitted policy and the figures it rests on.

    Attributes:
        policy: The policy.
        by_count: Alpha chosen for each passage count.
        best_single: The one alpha that serves all counts best on the same questions.
        cells: One entry per passage count: quality bare and at the chosen alpha, gain with interval, regret.
    """

    policy: FittedAlpha
    by_count: dict[int, float]
    best_single: float
    cells: tuple[dict[str, Any], ...]


def fit_policy(sweeps: Sequence[Sweep]) -> PolicyFit:
    """Choose alpha for every passage count and bind it to the noise.

    A gain enters by the lower limit of its 95% interval, so an alpha whose gain cannot be told from chance never beats the
    bare model. Where the right answer is that nothing is stated, alphas that lower the share of such answers beyond its interval
    are out. Alpha does not fall with the count. It holds over the noises seen; where questions of the less noisy half lose on
    average, it is lowered for them; towards noise 0 it falls to 0.

    Args:
        sweeps: With gold, one per passage count; and without, any number.

    Raises:
        InvalidInputError: No sweep with gold, or grids that differ.
    """
    present = sorted((sweep for sweep in sweeps if not sweep.gold_missing), key=lambda sweep: sweep.count)
    if not present:
        raise InvalidInputError(
            "Fitting alpha needs at least one sweep over questions with their gold passage; got none."
        )
    grid = present[0].alphas
    if any(sweep.alphas != grid for sweep in sweeps):
        raise InvalidInputError("All sweeps must share one grid of alphas.")
    missing = {sweep.count: sweep for sweep in sweeps if sweep.gold_missing}
    values = [
        [_worth(sweep, alpha, missing.get(sweep.count)) if sweep.count > 1 else -alpha for alpha in grid]
        for sweep in present
    ]
    chosen = [grid[index] for index in _best_rising(values)]
    total = [sum(sum(sweep.column(alpha)) / len(sweep.quality) for sweep in present) for alpha in grid]
    best_single = grid[max(range(len(grid)), key=lambda index: (total[index], -index))]
    calmer = [_calmer_alpha(sweep, alpha) for sweep, alpha in zip(present, chosen, strict=True)]
    for index in reversed(range(len(calmer) - 1)):
        calmer[index] = min(calmer[index], calmer[index + 1])
    return PolicyFit(
        policy=_surface(present, chosen, calmer),
        by_count={sweep.count: alpha for sweep, alpha in zip(present, chosen, strict=True)},
        best_single=best_single,
        cells=tuple(_cell(sweep, alpha, best_single) for sweep, alpha in zip(present, chosen, strict=True)),
    )


def signal_quality(
    sweep: Sweep, policy: AlphaPolicy, examples: Sequence[Example], seed: int
) -> dict[str, dict[str, Any]]:
    """What a policy would reach under other retrieval signals, read off a sweep.

    Args:
        sweep: Answers of these questions over the grid of alphas; quality is linear between its alphas.
        policy: The policy.
        examples: The questions of the sweep, in its order.
        seed: Of the shuffling.

    Returns:
        For scores as retrieved, without scores, and scores shuffled among the passages: mean alpha, and quality.
    """
    rng = random.Random(seed)
    found = {}
    for name in ("as retrieved", "without scores", "shuffled"):
        alphas = []
        for example in examples:
            scores: list[float | None] = [passage.score for passage in example.passages]
            if name == "without scores":
                scores = [None] * len(scores)
            elif name == "shuffled":
                rng.shuffle(scores)
            passages = [Passage(one.text, score=score) for one, score in zip(example.passages, scores, strict=True)]
            alphas.append(policy.choose(signal_of(passages)).alpha)
        grades = [_between(sweep.alphas, row, alpha) for row, alpha in zip(sweep.quality, alphas, strict=True)]
        found[name] = {"alpha": sum(alphas) / max(len(alphas), 1), "quality": Estimate.of(grades).to_dict()}
    return found


def _between(alphas: Sequence[float], quality: Sequence[float], alpha: float) -> float:
    """Quality at an alpha between two of the grid, or at its edge."""
    above = next((index for index, one in enumerate(alphas) if one >= alpha), len(alphas) - 1)
    if above == 0 or alpha >= alphas[above]:
        return quality[above]
    share = (alpha - alphas[above - 1]) / (alphas[above] - alphas[above - 1])
    return quality[above - 1] + share * (quality[above] - quality[above - 1])


def _worth(sweep: Sweep, alpha: float, missing: Sweep | None) -> float:
    if missing is not None and missing.gain(alpha).high < 0:
        return -math.inf
    return sweep.gain(alpha).low


def _best_rising(values: Sequence[Sequence[float]]) -> list[int]:
    """Indices, one per row, that never fall and have the largest sum; the smaller index where sums are equal."""
    width = len(values[0])
    best = [0.0] * width
    steps: list[list[int]] = []
    for row in values:
        came_from, reached, index = [], [], 0
        for column in range(width):
            if best[column] > best[index]:
                index = column
            came_from.append(index)
            reached.append(best[index] + row[column])
        best = reached
        steps.append(came_from)
    column = max(range(width), key=lambda place: (best[place], -place))
    path = []
    for came_from in reversed(steps):
        path.append(column)
        column = came_from[column]
    return path[::-1]


def _calmer_alpha(sweep: Sweep, alpha: float) -> float:
    """The largest alpha up to `alpha` at which the less noisy half of the questions does not lose on average."""
    half = _less_noisy_half(sweep)
    if not half:
        return alpha
    return max(one for one in sweep.alphas if one <= alpha and sweep.gain(one, half).mean >= 0)


def _less_noisy_half(sweep: Sweep) -> list[int]:
    known = sorted((noise, index) for index, noise in enumerate(sweep.noises) if noise is not None)
    return [index for _, index in known[: len(known) // 2]]


def _surface(sweeps: Sequence[Sweep], chosen: Sequence[float], calmer: Sequence[float]) -> FittedAlpha:
    """The grid of a policy: 0 at noise 0 and at one passage, `calmer` at low noise, `chosen` from there on."""
    known = sorted(noise for sweep in sweeps for noise in sweep.noises if noise is not None and sweep.count > 1)
    by_count = [1 - 1 / sweep.count for sweep in sweeps if sweep.count > 1]
    seen_low = min([*by_count, *known[len(known) // 20 : len(known) // 20 + 1]], default=0.5)
    low = round(max(seen_low, 0.05), 4)
    knots: list[tuple[float, Sequence[float]]] = [(0.0, [0.0] * len(sweeps)), (low, calmer)]
    if any(first != second for first, second in zip(calmer, chosen, strict=True)):
        middle = round(known[len(known) // 2], 4)
        knots = [*knots, (middle, chosen)] if middle > low else [*knots[:1], (low, calmer), (1.0, chosen)]
    counts = [sweep.count for sweep in sweeps]
    rows = [[column[index] for _, column in knots] for index in range(len(sweeps))]
    if counts[0] > 1:
        counts, rows = [1, *counts], [[0.0] * len(knots), *rows]
    return FittedAlpha(
        counts=tuple(counts), noises=tuple(noise for noise, _ in knots), alphas=tuple(tuple(row) for row in rows)
    )


def _cell(sweep: Sweep, alpha: float, best_single: float) -> dict[str, Any]:
    return {
        "count": sweep.count,
        "questions": len(sweep.quality),
        "alpha": alpha,
        "bare": Estimate.of(sweep.column(0.0)).to_dict(),
        "at_alpha": Estimate.of(sweep.column(alpha)).to_dict(),
        "gain": sweep.gain(alpha).to_dict(),
        "at_best_single": Estimate.of(sweep.column(best_single)).to_dict(),
        "regret": sweep.regret(alpha),
        "regret_bare": sweep.regret(0.0),
    }
