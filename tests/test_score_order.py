"""Which score is the better one, and the orders that follow."""

from __future__ import annotations

import pytest

from focus_rag.errors import InvalidInputError
from focus_rag.score_order import best_first, is_best_first, orientation


@pytest.mark.parametrize(
    ("scores", "options", "told"),
    [
        ((0.9, 0.5, 0.1), {}, True),
        ((0.1, 0.5, 0.9), {}, False),
        ((0.9, 0.95, 0.5, 0.1), {}, None),  # so few may fall by chance
        ((*range(20, 10, -1), 30, *range(10, 0, -1)), {}, True),  # one passage moved
        ((*range(10), -30, *range(10, 20)), {}, False),
        ((0.2, 0.9, 0.1, 0.3, 0.15), {}, None),
        ((0.2, 0.9, 0.1, 0.3, 0.15), {"score_kind": "l2"}, False),
        ((0.2, 0.9, 0.1, 0.3, 0.15), {"score_kind": "unknown"}, None),
        ((0.1, 0.5, 0.9), {"score_kind": "cosine"}, True),
        ((0.1, 0.5, 0.9), {"score_kind": "cosine", "higher_is_better": False}, False),
        ((0.5, None, 0.5), {}, None),
        ((0.5,), {}, None),
        ((), {}, None),
    ],
)
def test_which_end_of_the_scores_is_the_better_one(scores, options, told):
    assert orientation(scores, **options) is told


def test_where_nothing_tells_the_better_end_higher_is_better():
    shuffled = [3.0, 0.0, 4.0, 1.0, None, 2.0]
    assert best_first(shuffled) == [2, 0, 5, 3, 1, 4]
    assert best_first(shuffled, higher_is_better=False) == [1, 3, 5, 0, 2, 4]
    assert best_first(shuffled, score_kind="cosine") == [2, 0, 5, 3, 1, 4]


def test_among_equals_the_earlier_one_goes_first():
    assert best_first([0.5, None, 0.9, 0.5, None, 0.9]) == [2, 5, 0, 3, 1, 4]
    assert best_first([None, None]) == [0, 1]


@pytest.mark.parametrize("kind", ["nonsense", ["cosine"], 3])
def test_kinds_that_do_not_exist_are_refused(kind):
    for call in (orientation, best_first, lambda scores, **options: is_best_first(scores, [0, 1], **options)):
        with pytest.raises(InvalidInputError, match="Unknown score_kind"):
            call([0.5, 0.1], score_kind=kind)


def test_steps_that_are_rounding_tell_no_order():
    assert orientation([0.7, 0.7, 0.7 + 2e-16]) is None
    assert orientation([0.7, 0.6, 0.6 + 1e-16, 0.5]) is True
