"""The fitted policy takes gains that are there and leaves the model alone where they are not."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example
from focus_rag.fitting.alpha_fitting import best_single_alpha, fit_policy, pooled, signal_quality
from focus_rag.fitting.alpha_sweep import Sweep
from focus_rag.fitting.asking import without_gold
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.more_than_chance import contributions, more_than_chance
from focus_rag.passages import Passage, RetrievalSignal

GRID = (0.0, 0.25, 0.5, 1.0)


def sweep_at(
    count: int,
    rates: dict[float, float],
    *,
    n: int = 200,
    seed: int = 0,
    noise: float = 1.0,
    signals: list[float] | None = None,
    gold_missing: bool = False,
) -> Sweep:
    """Questions with a difficulty each: right at an alpha whose rate lies above it."""
    rng = random.Random(f"{seed} {count} {noise}")
    hardness = [rng.random() for _ in range(n)]
    quality = tuple(tuple(float(rates[alpha] > one) for alpha in GRID) for one in hardness)
    told = [1 - 1 / count] * n if signals is None else signals
    return sweep(count, quality, told, noise=noise, gold_missing=gold_missing)


def sweep(count: int, quality: tuple[tuple[float, ...], ...], told: list[float], **options: object) -> Sweep:
    signals = tuple(RetrievalSignal(count, one, "scores", "test") for one in told)
    return Sweep(count, GRID, quality, signals, tuple(f"q{i}" for i in range(len(quality))), **options)  # type: ignore[arg-type]


def alpha_at(fit: object, count: int, noise: float) -> float:
    return fit.policy.choose(RetrievalSignal(count, noise, "given", "test")).alpha  # type: ignore[attr-defined]


HELPS = {0.0: 0.5, 0.25: 0.6, 0.5: 0.75, 1.0: 0.55}
FLAT = {0.0: 0.95, 0.25: 0.95, 0.5: 0.95, 1.0: 0.95}
HARMS = {0.0: 0.9, 0.25: 0.85, 0.5: 0.8, 1.0: 0.6}


def test_alpha_goes_where_the_gain_is() -> None:
    fit = fit_policy([sweep_at(3, FLAT), sweep_at(20, HELPS)])
    assert fit.by_count == {3: 0.0, 20: 0.5}
    assert alpha_at(fit, 20, 0.95) == 0.5 and alpha_at(fit, 40, 1.0) == 0.5
    assert alpha_at(fit, 3, 0.9) == 0.0 and alpha_at(fit, 1, 1.0) == 0.0
    assert 0.0 < alpha_at(fit, 8, 0.95) < 0.5


def test_a_gain_within_its_interval_is_no_gain() -> None:
    few = sweep_at(20, {0.0: 0.5, 0.25: 0.54, 0.5: 0.53, 1.0: 0.5}, n=12)
    assert fit_policy([few]).by_count == {20: 0.0}


def test_a_small_gain_counts_beside_a_large_one_of_the_same_kind() -> None:
    """Three questions more of 100 are within chance by themselves; next to a count where the same alpha gains much they
    are taken.
    """
    small = tuple((0.0, 0.0, float(i < 10), 0.0) if i < 15 else (1.0, 1.0, float(i >= 20), 1.0) for i in range(100))
    alone = sweep(8, small, [0.875] * 100)
    assert alone.gain(0.5).mean == pytest.approx(0.05) and alone.gain(0.5).low < 0
    assert fit_policy([alone]).by_count == {8: 0.0}
    assert fit_policy([alone, sweep_at(20, HELPS)]).by_count == {8: 0.5, 20: 0.5}


def test_harm_is_never_chosen_and_best_single_is_honest() -> None:
    fit = fit_policy([sweep_at(3, HARMS), sweep_at(20, HARMS)])
    assert set(fit.by_count.values()) == {0.0} and fit.best_single == 0.0


def test_harm_in_calm_retrievals_rules_an_alpha_out_at_that_count() -> None:
    calm = sweep_at(20, {0.0: 1.0, 0.25: 1.0, 0.5: 0.9, 1.0: 0.8}, noise=0.0)
    fit = fit_policy([sweep_at(20, HELPS), calm])
    assert fit.by_count == {20: 0.25}
    assert [(cell["count"], cell["noise"]) for cell in fit.cells] == [(20, 1.0), (20, 0.0)]
    assert fit.best_single == 0.5, "which is what the ban is for"


def test_alpha_does_not_fall_with_the_count() -> None:
    fit = fit_policy([sweep_at(3, HELPS), sweep_at(8, {0.0: 0.5, 0.25: 0.7, 0.5: 0.65, 1.0: 0.5}), sweep_at(20, HELPS)])
    chosen = list(fit.by_count.values())
    assert chosen == sorted(chosen) and chosen[-1] == 0.5
    for noise in (0.0, 0.3, 0.7, 1.0):
        by_count = [alpha_at(fit, count, noise) for count in range(1, 50)]
        assert by_count == sorted(by_count)


def test_the_chosen_alphas_are_the_mildest_within_a_standard_error_of_the_best_that_do_not_fall() -> None:
    rng = random.Random(5)
    milder = 0
    for _ in range(20):
        rates = [{alpha: rng.uniform(0.4, 0.8) for alpha in GRID} for _ in range(3)]
        sweeps = [sweep_at(count, rate, n=40) for count, rate in zip((3, 8, 20), rates, strict=True)]
        every = [path for path in itertools.product(GRID, repeat=3) if list(path) == sorted(path)]
        unharmed = [
            path
            for path in every
            if all(alpha == 0 or one.gain(alpha).high >= 0 for one, alpha in zip(sweeps, path, strict=True))
        ]

        def gain(
            path: tuple[float, ...], over: tuple[float, ...] = (0.0, 0.0, 0.0), sweeps: list[Sweep] = sweeps
        ) -> Estimate:
            return pooled(
                [
                    (one.keys, one.differences(*alphas))
                    for one, alphas in zip(sweeps, zip(path, over, strict=True), strict=True)
                ]
            )

        added = [
            contributions([(one.keys, one.differences(alpha, 0.0)) for one, alpha in zip(sweeps, path, strict=True)])
            for path in every
        ]
        certain = {path for path, verdict in zip(every, more_than_chance(added), strict=True) if verdict}
        found = tuple(fit_policy(sweeps).by_count.values())
        if not certain.intersection(unharmed):
            assert found == (0.0, 0.0, 0.0)
            continue
        best = max(certain.intersection(unharmed), key=lambda path: gain(path).low)
        behind = gain(best, found)
        assert found in unharmed and found in certain
        assert behind.mean <= (behind.mean - behind.low) / 1.96 + 1e-9
        for path in unharmed:
            ahead = gain(best, path)
            if sum(path) < sum(found) and path in certain:
                assert ahead.mean > (ahead.mean - ahead.low) / 1.96
        milder += sum(found) < sum(best)
    assert milder


def test_of_two_alphas_that_do_as_well_the_milder_one_is_taken() -> None:
    """Two questions of 200 more are no reason for four times the alpha, ten are."""

    def gained(right: int) -> tuple[tuple[float, ...], ...]:
        return tuple((0.0, float(i < 40), 0.0, float(5 <= i < right)) for i in range(200))

    assert fit_policy([sweep(20, gained(47), [0.95] * 200)]).by_count == {20: 0.25}
    assert fit_policy([sweep(20, gained(65), [0.95] * 200)]).by_count == {20: 1.0}


def test_no_noise_means_no_focus_and_more_noise_never_less() -> None:
    fit = fit_policy([sweep_at(20, HELPS)])
    by_noise = [alpha_at(fit, 20, step / 20) for step in range(21)]
    assert by_noise[0] == 0.0 and by_noise == sorted(by_noise) and by_noise[-1] == 0.5


def test_the_less_noisy_half_is_spared_where_it_loses() -> None:
    calm = [(1.0, 1.0, 0.7, 0.7)] * 20 + [(1.0, 1.0, 0.0, 0.0)] * 10 + [(1.0, 1.0, 1.0, 1.0)] * 70
    noisy = [(0.0, 0.2, 1.0, 0.0)] * 100
    fit = fit_policy([sweep(20, tuple(calm + noisy), [0.3] * 100 + [0.9] * 100)])
    assert fit.by_count == {20: 0.5}
    assert alpha_at(fit, 20, 0.3) == 0.25 and alpha_at(fit, 20, 0.95) == 0.5


def test_losing_the_right_not_stated_rules_an_alpha_out() -> None:
    missing = sweep_at(20, {0.0: 0.8, 0.25: 0.8, 0.5: 0.4, 1.0: 0.1}, gold_missing=True)
    fit = fit_policy([sweep_at(20, HELPS), missing])
    assert fit.by_count == {20: 0.25} and len(fit.cells) == 1


def test_figures_are_those_of_the_policy() -> None:
    small, large = sweep_at(3, FLAT), sweep_at(20, HELPS)
    fit = fit_policy([small, large])
    cell = fit.cells[1]
    assert cell["auto_alpha"] == 0.5 and cell["gain"] == large.gain(0.5).to_dict()
    assert cell["regret"] == pytest.approx(large.regret(0.5)) and cell["regret_bare"] == large.regret(0.0)
    assert fit.overall["gain"]["mean"] == pytest.approx(large.gain(0.5).mean / 2)
    assert fit.overall["against_best_single"]["mean"] == 0.0 and fit.best_single == 0.5
    assert fit.overall["regret"] == pytest.approx((small.regret(0.0) + large.regret(0.5)) / 2)


def test_a_pooled_interval_counts_a_question_once() -> None:
    values = [float(i % 3 == 0) for i in range(60)]
    keys = [f"q{i}" for i in range(60)]
    once = Estimate.of(values)
    twice = pooled([(keys, values), (keys, values)])
    assert (twice.mean, twice.low, twice.n) == (pytest.approx(once.mean), pytest.approx(once.low), 60)
    apart = pooled([(keys, values), ([f"r{i}" for i in range(60)], values)])
    assert apart.n == 120 and apart.low > twice.low


def test_regret_is_against_each_questions_own_best_alpha() -> None:
    one = sweep(5, ((0.0, 1.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)), [0.8] * 3)
    assert one.regret(0.25) == pytest.approx(1 / 3) and one.regret(1.0) == pytest.approx(2 / 3)
    assert one.at(0, 0.125) == 0.5 and one.at(0, 0.75) == 0.5 and one.at(1, 0.0) == 1.0 and one.at(0, 7.0) == 0.0


def test_sweeps_must_share_a_grid() -> None:
    one = sweep_at(8, HELPS, n=5)
    with pytest.raises(InvalidInputError, match="one grid"):
        fit_policy([one, replace(one, alphas=(0.0, 0.3, 0.4, 0.5))])
    with pytest.raises(InvalidInputError, match="got none"):
        fit_policy([sweep_at(8, HELPS, gold_missing=True)])
    assert best_single_alpha([sweep_at(8, HELPS), sweep_at(20, FLAT)]) == 0.5


def test_other_score_kinds_reach_the_policy() -> None:
    """Distances say what scores say; fused ranks say what no scores say: the count."""
    passages = tuple(Passage(str(i), score=9.0 if i == 0 else 1 - i / 50 - i * i / 900) for i in range(20))
    example = Example("q", ("0",), passages, frozenset({0}))
    one = sweep(20, ((0.0, 0.0, 1.0, 0.0),), [0.95])
    policy = fit_policy([sweep_at(20, HELPS)]).policy
    found = signal_quality(one, policy, [example], seed=0)
    assert set(found) == {"as retrieved", "as distances", "fused ranks", "shuffled", "without scores"}
    assert found["as distances"] == found["as retrieved"] and found["fused ranks"] == found["without scores"]
    assert found["without scores"]["alpha"] == 0.5 and found["without scores"]["quality"]["mean"] == 1.0


def test_estimate_and_gold_taken_away() -> None:
    assert Estimate.of([]).low == -1.0
    estimate = Estimate.of([0.0, 1.0] * 50)
    assert estimate.mean == 0.5 and estimate.low == pytest.approx(0.5 - 1.96 * 0.0502519, abs=1e-4)
    example = Example("q", ("a",), (Passage("x"), Passage("a"), Passage("y")), frozenset({1}))
    assert [passage.text for passage in without_gold(example)] == ["x", "y"]
