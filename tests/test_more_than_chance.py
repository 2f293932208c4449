"""The best of many candidates is told from chance only where the best of as many that gain nothing would not be."""

from __future__ import annotations

import numpy as np
import pytest

from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.more_than_chance import contributions, more_than_chance


def added(differences: list[float]) -> dict[str, float]:
    return contributions([([f"question {i}" for i in range(len(differences))], differences)])


def test_what_questions_add_is_the_mean_over_cells_of_the_mean_of_each() -> None:
    found = contributions([(["a", "b"], [1.0, 0.0]), (["b"], [-1.0])])
    assert found == {"a": 0.25, "b": -0.5} and sum(found.values()) == pytest.approx((0.5 - 1.0) / 2)


@pytest.mark.parametrize(("better", "told"), [(5, False), (6, True)])
def test_one_candidate_is_told_as_the_exact_test_of_signs_tells_it(better: int, told: bool) -> None:
    """All five or six questions that differ are better: by chance one time in 32, or 64."""
    assert more_than_chance([added([1.0] * better + [0.0] * 20)]) == [told]
    assert more_than_chance([added([-1.0] * better + [0.0] * 20)]) == [False]


def test_of_many_candidates_without_any_gain_hardly_ever_one_is_taken_for_better() -> None:
    rng = np.random.default_rng(3)
    by_interval = by_maximum = 0
    for _ in range(100):
        own = rng.integers(0, 2, size=(40, 20)) - rng.integers(0, 2, size=(40, 20))
        columns = own.T.astype(float).tolist()
        by_interval += any(Estimate.of(column).low > 0 for column in columns)
        by_maximum += any(more_than_chance([added(column) for column in columns]))
    assert by_interval > 25 and by_maximum <= 7


def test_a_gain_among_many_is_found_and_the_others_are_not() -> None:
    rng = np.random.default_rng(4)
    columns = (rng.integers(0, 2, size=(20, 60)) - rng.integers(0, 2, size=(20, 60))).astype(float).tolist()
    columns[7] = [1.0] * 20 + [0.0] * 38 + [-1.0] * 2
    assert [place for place, one in enumerate(more_than_chance([added(one) for one in columns])) if one] == [7]


def test_nothing_is_better_than_nothing() -> None:
    assert more_than_chance([]) == []
    assert more_than_chance([{}, {}]) == [False, False]
    assert more_than_chance([added([0.0] * 30)]) == [False]
