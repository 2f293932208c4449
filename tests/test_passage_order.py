"""Questions are asked again in random order, and harm there is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from focus_rag.examples import Example
from focus_rag.fitting.passage_order import Grades, order_figures, order_warning
from focus_rag.passages import Passage


def questions(count: int) -> list[Example]:
    passages = tuple(Passage(f"passage {place}", score=10.0 - place) for place in range(6))
    return [Example(f"question {number}?", ("yes",), passages, frozenset({0})) for number in range(count)]


def first_is_right(shown: Sequence[Example], is_focused: bool) -> list[float]:
    """Bare, every question is answered; focused, those whose gold passage stands first."""
    return [float(not is_focused or 0 in one.gold) for one in shown]


def figures(asked: list[Example], grades: Grades, seed: int = 0) -> dict[str, Any]:
    return order_figures(asked, (grades(asked, False), grades(asked, True)), seed, grades)


def test_a_gain_that_is_the_order_becomes_harm_when_it_is_shuffled() -> None:
    found = figures(questions(30), first_is_right)
    assert found["as retrieved"]["gain"]["mean"] == 0.0
    shuffled = found["shuffled"]
    assert shuffled["bare"]["mean"] == 1.0
    assert 0.0 < shuffled["auto"]["mean"] < 0.5
    assert shuffled["gain"]["n"] == 30
    warning = order_warning(found, 0.05)
    assert warning is not None
    assert "are answered worse" in warning
    assert f"{100 * shuffled['gain']['mean']:+.1f} points" in warning
    assert "--shuffle" in warning


def changed(better: int, worse: int, of: int) -> dict[str, Any]:
    """Figures of questions of which focus answers some that were wrong and loses some that were right."""

    def grades(shown: Sequence[Example], is_focused: bool) -> list[float]:
        return [
            float(i % 2 == 0 if not (i < better + worse) else (i < better) == is_focused) for i in range(len(shown))
        ]

    return figures(questions(of), grades)


def test_harm_has_to_be_ruled_out() -> None:
    untouched = [figures(questions(n), lambda shown, focused: [1.0] * len(shown)) for n in (30, 150)]
    # That no one of 30 changed leaves a loss of a tenth possible.
    assert [order_warning(one, 0.05) is None for one in untouched] == [False, True]
    assert order_warning(changed(4, 2, 150), 0.05) is None
    within_chance = order_warning(changed(10, 10, 150), 0.05)  # +0.0, -5.8 to 5.8
    assert within_chance is not None
    assert "may be answered more than 5 points worse" in within_chance
    assert order_warning(changed(10, 10, 150), 0.1) is None


def test_the_random_order_is_the_same_each_time() -> None:
    seen: list[list[str]] = []

    def noted(shown: Sequence[Example], is_focused: bool) -> list[float]:
        seen.append([passage.text for one in shown for passage in one.passages])
        return [1.0] * len(shown)

    for _ in range(2):
        figures(questions(3), noted, 5)
    assert seen[:4] == seen[4:]
    assert seen[0] == seen[1] != seen[2] == seen[3]
