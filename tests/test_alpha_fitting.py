"""The fitted policy takes gains that are there and leaves the model alone where they are not."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_rag.alpha_fitting import Estimate, Sweep, _best_rising, answer_quality, fit_policy, without_gold
from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example
from focus_rag.passages import Passage, RetrievalSignal

GRID = (0.0, 0.25, 0.5, 1.0)


def sweep_of(
    count: int,
    rates: dict[float, float],
    *,
    n: int = 200,
    seed: int = 0,
    noises: list[float | None] | None = None,
    gold_missing: bool = False,
) -> Sweep:
    """Questions with a difficulty each: right at an alpha whose rate lies above it."""
    rng = random.Random(seed + count)
    hardness = [rng.random() for _ in range(n)]
    quality = tuple(tuple(float(rates[alpha] > one) for alpha in GRID) for one in hardness)
    return Sweep(count, GRID, quality, tuple(noises or [None] * n), gold_missing)


def alpha_at(fit: object, count: int, noise: float) -> float:
    return fit.policy.choose(RetrievalSignal(count, noise, "given", "test")).alpha  # type: ignore[attr-defined]


HELPS = {0.0: 0.5, 0.25: 0.6, 0.5: 0.75, 1.0: 0.55}
FLAT = {0.0: 0.95, 0.25: 0.95, 0.5: 0.955, 1.0: 0.95}
HARMS = {0.0: 0.9, 0.25: 0.85, 0.5: 0.8, 1.0: 0.6}


def test_alpha_goes_where_the_gain_is() -> None:
    fit = fit_policy([sweep_of(3, FLAT), sweep_of(20, HELPS)])
    assert fit.by_count == {3: 0.0, 20: 0.5}
    assert alpha_at(fit, 20, 0.95) == 0.5 and alpha_at(fit, 40, 1.0) == 0.5
    assert alpha_at(fit, 3, 0.9) == 0.0 and alpha_at(fit, 1, 1.0) == 0.0
    assert 0.0 < alpha_at(fit, 8, 0.95) < 0.5


def test_a_gain_within_its_interval_is_no_gain() -> None:
    few = sweep_of(20, {0.0: 0.5, 0.25: 0.54, 0.5: 0.53, 1.0: 0.5}, n=12)
    assert fit_policy([few]).by_count == {20: 0.0}


def test_harm_is_never_chosen_and_best_single_is_honest() -> None:
    fit = fit_policy([sweep_of(3, HARMS), sweep_of(20, HARMS)])
    assert set(fit.by_count.values()) == {0.0} and fit.best_single == 0.0


def test_alpha_does_not_fall_with_the_count() -> None:
    fit = fit_policy([sweep_of(3, HELPS), sweep_of(8, {0.0: 0.5, 0.25: 0.7, 0.5: 0.65, 1.0: 0.5}), sweep_of(20, HELPS)])
    chosen = list(fit.by_count.values())
    assert chosen == sorted(chosen) and chosen[-1] == 0.5
    for noise in (0.0, 0.3, 0.7, 1.0):
        by_count = [alpha_at(fit, count, noise) for count in range(1, 50)]
        assert by_count == sorted(by_count)


def test_no_noise_means_no_focus_and_more_noise_never_less() -> None:
    fit = fit_policy([sweep_of(20, HELPS)])
    by_noise = [alpha_at(fit, 20, step / 20) for step in range(21)]
    assert by_noise[0] == 0.0 and by_noise == sorted(by_noise) and by_noise[-1] == 0.5


def test_the_less_noisy_half_is_spared_where_it_loses() -> None:
    noises: list[float | None] = [0.3] * 100 + [0.9] * 100
    calm = [(1.0, 1.0, 0.7, 0.7)] * 20 + [(1.0, 1.0, 0.0, 0.0)] * 10 + [(1.0, 1.0, 1.0, 1.0)] * 70
    noisy = [(0.0, 0.2, 1.0, 0.0)] * 100
    fit = fit_policy([Sweep(20, GRID, tuple(calm + noisy), tuple(noises))])
    assert fit.by_count == {20: 0.5}
    assert alpha_at(fit, 20, 0.3) == 0.25 and alpha_at(fit, 20, 0.95) == 0.5


def test_losing_the_right_not_stated_rules_an_alpha_out() -> None:
    missing = sweep_of(20, {0.0: 0.8, 0.25: 0.8, 0.5: 0.4, 1.0: 0.1}, gold_missing=True)
    assert fit_policy([sweep_of(20, HELPS), missing]).by_count == {20: 0.25}


def test_regret_is_against_each_questions_own_best_alpha() -> None:
    sweep = Sweep(5, GRID, ((0.0, 1.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)), (None, None, None))
    assert sweep.regret(0.25) == pytest.approx(1 / 3) and sweep.regret(1.0) == pytest.approx(2 / 3)


@given(st.lists(st.lists(st.integers(-5, 5), min_size=4, max_size=4), min_size=1, max_size=4))
def test_best_rising_is_the_best_of_all_rising_sequences(values: list[list[int]]) -> None:
    found = _best_rising(values)
    rising = [path for path in itertools.product(range(4), repeat=len(values)) if list(path) == sorted(path)]
    assert found == sorted(found)

    def worth(path: object) -> int:
        return sum(row[index] for row, index in zip(values, path, strict=True))  # type: ignore[call-overload]

    assert worth(found) == max(worth(path) for path in rising)


def test_sweeps_survive_json_and_must_share_a_grid() -> None:
    sweep = sweep_of(8, HELPS, n=5)
    assert Sweep.from_dict(sweep.to_dict()) == sweep
    other = Sweep(20, (0.0, 0.3), ((0.0, 1.0),), (None,))
    with pytest.raises(InvalidInputError, match="one grid"):
        fit_policy([sweep, other])
    with pytest.raises(InvalidInputError, match="got none"):
        fit_policy([sweep_of(8, HELPS, gold_missing=True)])


def test_estimate_and_grading() -> None:
    assert Estimate.of([]).low == -1.0
    estimate = Estimate.of([0.0, 1.0] * 50)
    assert estimate.mean == 0.5 and estimate.low == pytest.approx(0.5 - 1.96 * 0.0502519, abs=1e-4)
    assert answer_quality("It was The Mill, in 1897.", ["mill in 1897"]) == 1.0
    assert answer_quality("1897", ["189"]) == 0.0
    example = Example("q", ("a",), (Passage("x"), Passage("a"), Passage("y")), frozenset({1}))
    assert [passage.text for passage in without_gold(example, 5)] == ["x", "y"]
