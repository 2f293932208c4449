"""Calm variants of retrievals are what they say, and the sweep stops where going on is hopeless."""

from __future__ import annotations

import pytest

from focus_rag.examples import Example, holds_answer
from focus_rag.fitting.calm_examples import calmed, pool_of
from focus_rag.fitting.sweep_cells import SweepCell, cells_of, climb
from focus_rag.passages import Passage


def example(number: int, passages: int = 6) -> Example:
    """Passages with falling scores; the gold one stands third."""
    texts = [Passage(f"Bell {number}-{i} rang.", score=1 - i / 10) for i in range(passages)]
    texts[2] = Passage(f"Bell {number} weighs {1000 + number} pounds.", score=0.8)
    return Example(f"What does bell {number} weigh?", (str(1000 + number),), tuple(texts), frozenset({2}))


EXAMPLES = [example(number) for number in range(6)]
POOL = pool_of(EXAMPLES)


@pytest.mark.parametrize(("noise", "kept"), [(1.0, [0, 1, 3, 4, 5]), (0.4, [0, 1]), (0.0, [])])
def test_the_best_scored_distractors_stay_and_the_others_come_from_elsewhere(noise: float, kept: list[int]) -> None:
    one = EXAMPLES[0]
    calm = calmed(one, 6, noise, POOL)
    assert calm is not None and len(calm.passages) == 6 and calm.key == one.key
    (gold,) = calm.gold
    assert calm.passages[gold] == one.passages[2]
    own = [passage for passage in calm.passages if passage in one.passages and passage != one.passages[2]]
    assert own == [one.passages[index] for index in kept]
    foreign = [passage for passage in calm.passages if passage not in one.passages]
    assert all(passage.score == 0.5 and not holds_answer(passage.content, one.answers) for passage in foreign)
    assert len({passage.text for passage in calm.passages}) == 6
    assert calmed(one, 6, noise, list(POOL)) == calm


def test_calm_and_cut() -> None:
    one = EXAMPLES[0]
    calm = calmed(one, 3, 0.5, POOL)
    assert calm is not None and [passage in one.passages for passage in calm.passages] == [True, True, False]
    assert calmed(one, 3, 1.0, POOL) == one.at_count(3)


def test_what_cannot_be_calmed_is_said() -> None:
    assert calmed(EXAMPLES[0], 3, 0.0, pool_of(EXAMPLES[:1])) is None, "its own distractors calm nothing, shown or not"
    cells, warnings = cells_of(EXAMPLES[:1], pool_of(EXAMPLES[:1]), [1, 3, 6], [1.0, 0.0], fewest=1)
    assert [cell.name for cell in cells] == ["1-1", "3-1", "6-1", "6-missing"]
    assert len(warnings) == 1 and "noise 0 could be made at 3, 6 passages" in warnings[0]


def test_every_count_is_tried_at_every_noise() -> None:
    cells, warnings = cells_of(EXAMPLES, POOL, [1, 3, 6], [0.0, 0.5], fewest=4)
    assert [cell.name for cell in cells] == [
        "1-1",
        "3-1",
        "6-1",
        "3-0.5",
        "6-0.5",
        "3-0",
        "6-0",
        "6-missing",
    ] and not warnings
    assert {len(one.passages) for cell in cells for one in cell.questions if cell.count == 3} == {3}
    assert len(cells[-1].questions) == 3 and cells[-1].gold_missing


def test_the_climb_stops_where_an_alpha_is_beyond_doubt_worse() -> None:
    rates = {0.0: 3, 0.5: 5, 1.0: 5, 2.0: 0, 4.0: 6}
    asked: list[float] = []
    many = tuple(Example(f"q{i}", ("a",), EXAMPLES[i % 6].passages, frozenset({2})) for i in range(60))
    cells = [SweepCell(6, 1.0, many), SweepCell(6, 1.0, many[:30], gold_missing=True)]

    def grades(cell: SweepCell, alpha: float) -> list[float]:
        asked.append(alpha)
        return [float(i % 6 < rates[alpha]) for i in range(len(cell.questions))]

    told: list[tuple[int, int]] = []
    sweeps = climb(cells, [0.5, 1.0, 2.0, 4.0], grades, lambda done, total: told.append((done, total)))
    assert asked == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0] and told[-1] == (10, 10)
    assert [sweep.alphas for sweep in sweeps] == [(0.0, 0.5, 1.0, 2.0)] * 2
    assert sweeps[0].gain(0.5).mean == pytest.approx(1 / 3) and sweeps[1].gold_missing
