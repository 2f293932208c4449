"""Fit the alpha policy of a model to a sweep: take what helps, leave the rest alone.

What counts is the paired gain over the bare model, in all cells of passage count and noise together. Of all sequences
of alphas that never fall with the count, and that gain by more than the best of all would by chance, the best has the
highest lower confidence limit of its total gain, and the mildest is taken whose gain lies within one standard error of
the best one's: which of two alphas that do as well comes out ahead is chance, and the milder one does less where it
does harm. A cell with few questions thus borrows strength from the others, and alpha stays 0 where nothing can be told
from chance. An alpha that loses in a cell beyond the interval is not used at its count, however much it gains
elsewhere. How this rule fares against others stands in `docs/fit-notes.md`.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from focus_rag.alpha import AlphaPolicy, FittedAlpha
from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example
from focus_rag.fitting.alpha_sweep import Sweep
from focus_rag.fitting.estimate import SAME, Z_95, Estimate, unseen_share
from focus_rag.fitting.more_than_chance import contributions, more_than_chance
from focus_rag.noise import signal_of
from focus_rag.passages import Passage


@dataclass(frozen=True, slots=True)
class PolicyFit:
    """A fitted policy and the figures it rests on.

    Attributes:
        policy: The policy.
        by_count: Alpha chosen for each passage count.
        best_single: The one alpha that serves all cells best on the same questions.
        cells: One entry per sweep with gold, in their order: quality bare and under the policy, gain with interval,
            regret.
        overall: Gain of the policy over the bare model and over the best single alpha, and regret, over all cells.
    """

    policy: FittedAlpha
    by_count: dict[int, float]
    best_single: float
    cells: tuple[dict[str, Any], ...]
    overall: dict[str, Any]


def pooled(cells: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Estimate:
    """Mean over cells of the mean of each, with an interval in which a question counts once, however many cells it
    stands in. Values that are all the same rule nothing out by their spread (see `Estimate.of`).

    Args:
        cells: For each cell the names of its questions and one value for each.
    """
    influence: dict[str, float] = defaultdict(float)
    total = 0.0
    for keys, values in cells:
        mean = sum(values) / len(values)
        total += mean / len(cells)
        for key, value in zip(keys, values, strict=True):
            influence[key] += (value - mean) / len(values) / len(cells)
    n = len(influence)
    if n < 2:
        return Estimate(total, -1.0, 1.0, n)
    if all(max(values) - min(values) <= SAME for _, values in cells):
        half = unseen_share(n)
    else:
        half = Z_95 * math.sqrt(sum(value * value for value in influence.values()) * n / (n - 1))
    return Estimate(total, total - half, total + half, n)


def best_single_alpha(sweeps: Sequence[Sweep]) -> float:
    """The one alpha of the grid with the highest quality over all cells; the smaller one where two are equal."""

    def quality(alpha: float) -> float:
        return sum(sum(sweep.column(alpha)) / len(sweep.quality) for sweep in sweeps)

    return max(sweeps[0].alphas, key=lambda alpha: (quality(alpha), -alpha))


def fit_policy(sweeps: Sequence[Sweep], *, needs_order: bool = False) -> PolicyFit:
    """Choose alpha for every passage count and bind it to the noise.

    Args:
        sweeps: With gold, any cells of count and noise; and without, any number.
        needs_order: Whether the policy leaves passages alone that do not stand best first.

    Raises:
        InvalidInputError: No sweep with gold, or grids that differ.
    """
    present = [sweep for sweep in sweeps if not sweep.gold_missing]
    if not present:
        raise InvalidInputError(
            "Fitting alpha needs at least one sweep over questions with their gold passage; got none."
        )
    if any(sweep.alphas != present[0].alphas for sweep in sweeps):
        raise InvalidInputError("All sweeps must share one grid of alphas.")
    counts = sorted({sweep.count for sweep in present})
    chosen = _mildest_of_the_best(counts, sweeps)
    calmer = {count: _calmer_alpha([one for one in present if one.count == count], chosen[count]) for count in counts}
    for count, following in reversed(list(itertools.pairwise(counts))):
        calmer[count] = min(calmer[count], calmer[following])
    policy = _surface(present, chosen, calmer).model_copy(update={"needs_order": needs_order})
    best_single = best_single_alpha(present)
    cells = [_cell(sweep, policy, chosen[sweep.count], best_single) for sweep in present]
    return PolicyFit(policy, chosen, best_single, tuple(cells), _overall(present, policy, best_single))


def _mildest_of_the_best(counts: Sequence[int], sweeps: Sequence[Sweep]) -> dict[int, float]:
    """Alphas that never fall with the count: of those that gain as much as the best ones, within a standard error, the
    mildest.
    """
    grid = sweeps[0].alphas
    allowed = {count: {alpha for alpha in grid if _is_harmless(alpha, count, sweeps)} for count in counts}
    present = [sweep for sweep in sweeps if not sweep.gold_missing]

    def differences(alphas: Mapping[int, float], over: Mapping[int, float]) -> list[tuple[Sequence[str], list[float]]]:
        return [(one.keys, one.differences(alphas[one.count], over[one.count])) for one in present]

    def gain(alphas: Mapping[int, float], over: Mapping[int, float]) -> Estimate:
        return pooled(differences(alphas, over))

    bare = dict.fromkeys(counts, 0.0)
    paths = [
        dict(zip(counts, path, strict=True)) for path in itertools.combinations_with_replacement(grid, len(counts))
    ]
    # All of them are candidates of the test, those that lose somewhere too: that they do is seen on the same questions.
    certain = more_than_chance([contributions(differences(path, bare)) for path in paths])
    worth_it = [
        (path, gain(path, bare))
        for path, is_certain in zip(paths, certain, strict=True)
        if is_certain and all(alpha in allowed[count] for count, alpha in path.items())
    ]
    if not worth_it:
        return bare
    best, _ = max(worth_it, key=lambda one: one[1].low)
    as_good = [(path, found) for path, found in worth_it if (ahead := gain(best, path)).mean <= ahead.standard_error]
    return min(as_good, key=lambda one: (sum(one[0].values()), -one[1].mean))[0]


def _is_harmless(alpha: float, count: int, sweeps: Sequence[Sweep]) -> bool:
    """Whether an alpha may be used at a count; at one passage there is nothing to choose from."""
    if alpha == 0:
        return True
    if count == 1:
        return False
    return not any(_loses(sweep.differences(alpha)) for sweep in sweeps if sweep.count == count)


def _loses(differences: Sequence[float]) -> bool:
    return Estimate.of(differences).high < 0


def _calmer_alpha(sweeps: Sequence[Sweep], alpha: float) -> float:
    """The largest alpha up to `alpha` at which the less noisy half of the questions of a count does not lose."""
    told = [(signal.noise, place) for sweep in sweeps for place, signal in enumerate(sweep.signals)]
    order = sorted(range(len(told)), key=lambda index: told[index])
    half = order[: len(order) // 2]
    if not half or told[half[0]][0] == told[order[-1]][0]:
        return alpha

    def loses(one: float) -> bool:
        differences = [value for sweep in sweeps for value in sweep.differences(one)]
        return _loses([differences[index] for index in half])

    return max(one for one in sweeps[0].alphas if one <= alpha and not loses(one))


def _surface(sweeps: Sequence[Sweep], chosen: dict[int, float], calmer: dict[int, float]) -> FittedAlpha:
    """The grid of a policy: 0 for one passage and at noise 0; between the lowest noise seen and each count's median
    noise it rises from `calmer` to `chosen`.
    """
    seen = {
        count: sorted(signal.noise for sweep in sweeps if sweep.count == count for signal in sweep.signals)
        for count in chosen
        if count > 1
    }
    lowest = min((noises[len(noises) // 20] for noises in seen.values()), default=0.5)
    low = round(max(min([lowest, *(1 - 1 / count for count in seen)]), 0.05), 4)
    middle = {
        count: max(round(noises[len(noises) // 2], 4), low)
        for count, noises in seen.items()
        if calmer[count] != chosen[count]
    }
    knots = sorted({0.0, low, *(noise if noise > low else 1.0 for noise in middle.values())})

    def alpha(count: int, noise: float) -> float:
        top = middle.get(count, low)
        if noise <= low:
            return calmer[count] if noise else 0.0
        if noise >= top:
            return chosen[count]
        return calmer[count] + (noise - low) / (top - low) * (chosen[count] - calmer[count])

    counts = [count for count in chosen if count > 1]
    return FittedAlpha(
        counts=(1, *counts),
        noises=tuple(knots),
        alphas=(tuple(0.0 for _ in knots), *(tuple(alpha(count, noise) for noise in knots) for count in counts)),
    )


def _policy_column(sweep: Sweep, policy: AlphaPolicy) -> tuple[list[float], list[float]]:
    """Alpha of each question under a policy, and its quality, read off the sweep between its alphas."""
    alphas = [policy.choose(signal).alpha for signal in sweep.signals]
    return alphas, [sweep.at(place, alpha) for place, alpha in enumerate(alphas)]


def _cell(sweep: Sweep, policy: FittedAlpha, alpha: float, best_single: float) -> dict[str, Any]:
    alphas, quality = _policy_column(sweep, policy)
    return {
        "count": sweep.count,
        "noise": sweep.noise,
        "questions": len(sweep.quality),
        "alpha": alpha,
        "auto_alpha": sum(alphas) / len(alphas),
        "bare": Estimate.of(sweep.column(0.0)).to_dict(),
        "gain": sweep.gain(alpha).to_dict(),
        "at_best_single": Estimate.of(sweep.column(best_single)).to_dict(),
        "regret": sum(max(row) - one for row, one in zip(sweep.quality, quality, strict=True)) / len(quality),
        "regret_bare": sweep.regret(0.0),
    }


def _overall(sweeps: Sequence[Sweep], policy: FittedAlpha, best_single: float) -> dict[str, Any]:
    auto = [_policy_column(sweep, policy)[1] for sweep in sweeps]

    def against(alpha: float) -> dict[str, float]:
        differences = [
            (sweep.keys, [one - other for one, other in zip(quality, sweep.column(alpha), strict=True)])
            for sweep, quality in zip(sweeps, auto, strict=True)
        ]
        return pooled(differences).to_dict()

    def regret(columns: Sequence[Sequence[float]]) -> float:
        lost = [
            sum(max(row) - one for row, one in zip(sweep.quality, quality, strict=True)) / len(quality)
            for sweep, quality in zip(sweeps, columns, strict=True)
        ]
        return sum(lost) / len(lost)

    return {
        "gain": against(0.0),
        "against_best_single": against(best_single),
        "regret": regret(auto),
        "regret_bare": regret([sweep.column(0.0) for sweep in sweeps]),
    }


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
        For scores as retrieved, as distances (lower is better), as fused ranks, shuffled among the passages, and
        absent: mean alpha, and quality.
    """
    rng = random.Random(seed)
    found = {}
    for name in ("as retrieved", "as distances", "fused ranks", "shuffled", "without scores"):
        is_own = name in ("as retrieved", "shuffled")  # the others are scores of another kind
        signals = [
            signal_of(_rescored(example.passages, name, rng), score_kind=example.score_kind if is_own else None)
            for example in examples
        ]
        alphas, quality = _policy_column(replace(sweep, signals=tuple(signals)), policy)
        found[name] = {"alpha": sum(alphas) / max(len(alphas), 1), "quality": Estimate.of(quality).to_dict()}
    return found


def _rescored(passages: Sequence[Passage], how: str, rng: random.Random) -> list[Passage]:
    scores = [passage.score for passage in passages]
    if how == "as distances":
        scores = [None if score is None else -score for score in scores]
    elif how == "fused ranks":
        scores = [1 / (61 + rank) for rank in range(len(scores))]
    elif how == "shuffled":
        rng.shuffle(scores)
    elif how == "without scores":
        scores = [None] * len(scores)
    return [replace(passage, score=score) for passage, score in zip(passages, scores, strict=True)]
