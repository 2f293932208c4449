"""A split is chosen where it gains for certain over the directions and does harm nowhere."""

from __future__ import annotations

import pytest

from focus_rag.examples import Example
from focus_rag.fitting.split_fitting import Unsplit, by_words_alone, finds_gold, fit_split
from focus_rag.fitting.sweep_cells import SweepCell
from focus_rag.passages import Passage
from focus_rag.score_split import ScoreSplit

REACHES, TAUS = (0.3, 0.15, 0.0), (0.1, 0.03)


def questions(n: int = 60, score: float | None = 1.0) -> tuple[Example, ...]:
    passages = (
        Passage("gold", score=score),
        Passage("other", score=0.0 if score else None),
        Passage("third", score=0.0 if score else None),
    )
    return tuple(Example(f"Question {number}?", ("gold",), passages, frozenset({0})) for number in range(n))


def cell(
    bare: float, directions: float, *, count: int = 3, gold_missing: bool = False, score: float | None = 1.0
) -> Unsplit:
    asked = questions(score=score)
    return Unsplit(SweepCell(count, 1.0, asked, gold_missing), right(bare), right(directions))


def right(share: float, n: int = 60) -> list[float]:
    return [float(number < share * n) for number in range(n)]


def fitted(cells, quality):
    """Fit where a split answers the share `quality(split, cell)` of the questions, and those that are answered without
    it first.
    """
    asked: list[ScoreSplit] = []

    def grades(split: ScoreSplit, one: SweepCell) -> list[float]:
        asked.append(split)
        return right(quality(split, one))

    done: list[tuple[int, int]] = []
    best, tried = fit_split(cells, REACHES, TAUS, grades, lambda *step: done.append(step))
    assert [(one.split.reach, one.split.tau) for one in tried] == list(
        dict.fromkeys((one.reach, one.tau) for one in asked)
    )
    assert {one.fewest for one in asked} <= {2}  # asked among any number
    assert [step for step, _ in done] == list(range(1, len(tried) + 1)) and all(
        total == len(tried) for _, total in done
    )
    return best, tried


def test_the_exponent_is_chosen_first_and_the_reach_at_that_exponent():
    best, tried = fitted(
        [cell(0.3, 0.4)], lambda split, _: 0.5 + 0.2 * (split.tau == 0.03) + 0.2 * (split.reach == 0.15)
    )
    assert [(one.split.reach, one.split.tau) for one in tried] == [(0.3, 0.1), (0.3, 0.03), (0.15, 0.03), (0.0, 0.03)]
    assert best is not None and best.split == ScoreSplit(reach=0.15, tau=0.03, fewest=3)
    assert best.gain.mean == pytest.approx(0.5) and best.gain.low > 0.3
    (told,) = best.to_dict([cell(0.3, 0.4)])["cells"]
    assert (told["passages"], told["directions"]["mean"], told["split"]["mean"]) == (3, 0.4, 0.9)


@pytest.mark.parametrize(("directions", "split"), [(0.6, 0.6), (0.6, 0.62), (0.9, 0.8)])
def test_without_a_sure_gain_over_the_directions_nothing_is_chosen(directions, split):
    best, tried = fitted([cell(0.3, directions)], lambda *_: split)
    assert best is None and len(tried) == 4


def test_what_does_harm_in_any_cell_is_not_chosen():
    cells = [cell(0.3, 0.3), cell(0.5, 0.5, gold_missing=True)]
    best, tried = fitted(cells, lambda split, one: 0.3 if one.gold_missing else 0.9)
    assert best is None and all(one.loses == ("3-missing",) for one in tried)
    best, _ = fitted(cells, lambda split, one: (0.3 if split.reach else 0.5) if one.gold_missing else 0.9)
    assert best is not None and best.split.reach == 0.0


def test_the_gain_is_that_of_cells_with_gold_alone():
    best, _ = fitted(
        [cell(0.3, 0.3), cell(0.1, 0.1, gold_missing=True)], lambda split, one: 0.9 if one.gold_missing else 0.3
    )
    assert best is None


def test_where_nothing_favours_gold_nothing_is_tried():
    assert fitted([cell(0.3, 0.3, score=None)], lambda *_: 1.0) == (None, [])
    assert fit_split([cell(0.3, 0.3)], (), TAUS, lambda *_: right(1.0), lambda *_: None) == (None, [])
    assert fit_split([cell(0.3, 0.3, gold_missing=True)], REACHES, TAUS, lambda *_: right(1.0), lambda *_: None) == (
        None,
        [],
    )


def asked_of(*scores: float | None, gold: int, words: int | None) -> tuple[Example, ...]:
    """Questions with these scores, of which the words stand in one passage."""
    return tuple(
        Example(
            f"Which mill, {number}?",
            ("x",),
            tuple(Passage("a mill" if i == words else "other" + "s" * i, score=one) for i, one in enumerate(scores)),
            frozenset({gold}),
        )
        for number in range(60)
    )


@pytest.mark.parametrize(
    ("questions", "by"),
    [
        (asked_of(None, None, None, gold=0, words=0), "words"),
        (asked_of(0.9, 0.5, 0.1, gold=0, words=None), "scores"),  # words add nothing
        (asked_of(0.9, 0.5, 0.1, gold=0, words=0), "scores"),  # the same passages either way
        (asked_of(0.9, 0.5, 0.4, gold=1, words=1), "words"),  # scores mislead
        (asked_of(0.9, 0.5, 0.4, gold=0, words=1), "scores"),  # words do
        (asked_of(0.9, 0.8, 0.1, gold=0, words=0), "both"),  # by scores alone there are two
    ],
)
def test_a_split_goes_by_what_favours_gold(questions, by):
    cells = [Unsplit(SweepCell(3, 1.0, questions), right(0.3), right(0.4))]
    best, tried = fitted(cells, lambda split, _: 0.9)
    assert best is not None and {one.split.by for one in tried} == {by} and len(tried) == 4


@pytest.mark.parametrize(("quality", "worth"), [(0.9, True), (0.45, False), (0.1, False)])
def test_a_split_by_scores_is_tried_by_words_where_it_acts(quality, worth):
    cells = [
        cell(0.3, 0.4, count=3, score=None),
        cell(0.3, 0.4, count=8, score=None),
        cell(0.2, 0.2, count=8, score=None, gold_missing=True),
    ]
    asked = []

    def grades(split, one):
        asked.append(split)
        return right(0.2 if one.gold_missing else 0.0 if one.count == 3 else quality)

    trial = by_words_alone(ScoreSplit(reach=0.15, fewest=8), cells, grades)
    assert set(asked) == {ScoreSplit(reach=0.15, fewest=8, without_scores=True)} and trial.split == asked[0]
    assert trial.is_worth_it is worth and trial.gain.mean == pytest.approx((quality - 0.4) / 2)
    assert trial.loses == (("8-1",) if quality == 0.1 else ())


def test_how_often_the_favoured_passages_hold_the_gold_one():
    def asked(*scores, gold, question="Which?"):
        passages = tuple(
            Passage(text, score=score) for text, score in zip(("a mill", "a bakery", "a tower"), scores, strict=True)
        )
        return Example(question, ("x",), passages, frozenset({gold}))

    scored = [asked(0.9, 0.85, 0.1, gold=0), asked(0.9, 0.85, 0.1, gold=1), asked(0.9, 0.2, 0.1, gold=2)]
    assert finds_gold(ScoreSplit(reach=0.0), scored).mean == pytest.approx(1 / 3)
    assert finds_gold(ScoreSplit(reach=0.3), scored).mean == pytest.approx(2 / 3)
    unscored = [
        asked(None, None, None, gold=1, question="Which bakery?"),
        asked(None, None, None, gold=1, question="Which mill?"),
    ]
    assert finds_gold(ScoreSplit(reach=0.0, without_scores=True), unscored).mean == 0.5
    assert finds_gold(ScoreSplit(reach=0.0), unscored).mean == 0.0


def test_a_split_that_misleads_among_few_acts_from_more_on():
    cells = [cell(0.5, 0.7, count=3), cell(0.3, 0.4, count=8), cell(0.3, 0.4, count=20)]
    best, _ = fitted(cells, lambda split, one: 0.4 if one.count == 3 else 0.9)
    assert best is not None and best.split.fewest == 8 and best.loses == ()
    assert best.gain.mean == pytest.approx((0.0 + 0.5 + 0.5) / 3)
    shown = best.to_dict(cells)
    assert shown["fewest"] == 8 and shown["cells"][0]["split"]["mean"] == 0.4  # as measured, among any number
    assert fitted(cells, lambda *_: 0.9)[0].split.fewest == 3  # nothing is known of fewer


def test_of_equals_the_mildest_is_taken():
    best, tried = fitted([cell(0.3, 0.4)], lambda split, _: 0.88 + 0.02 * (split.tau == 0.03))
    assert best is not None and best.split.tau == 0.1
    assert [one.split.tau for one in tried] == [0.1, 0.03, 0.1, 0.1]
    surely, _ = fitted([cell(0.3, 0.4)], lambda split, _: 0.7 + 0.2 * (split.tau == 0.03))
    assert surely is not None and surely.split.tau == 0.03
    # One that gains nothing for certain is no equal, however mild.
    sure, _ = fitted([cell(0.3, 0.4)], lambda split, _: 0.42 + 0.15 * (split.tau == 0.03))
    assert sure is not None and sure.split.tau == 0.03
