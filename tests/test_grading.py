"""What counts as right follows from how a model answers undistracted."""

from __future__ import annotations

import pytest

from focus_rag.examples import Example
from focus_rag.fitting import asking
from focus_rag.fitting.grading import grade, grading_for
from focus_rag.passages import Passage


@pytest.mark.parametrize(
    ("text", "exact", "contains"),
    [
        ("405 dollars.", 1.0, 1.0),
        ("It cost the 405 dollars", 0.0, 1.0),
        ("405 dollars.. kilograms is not stated", 0.0, 1.0),
        ("40 dollars", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_an_answer_that_runs_on_is_right_only_by_what_it_contains(text: str, exact: float, contains: float) -> None:
    assert grade(text, ["405 dollars", "$405"], "exact") == exact
    assert grade(text, ["405 dollars", "$405"], "contains") == contains


def answered(*texts: str) -> list[tuple[str, list[str]]]:
    return [(text, ["405"]) for text in texts]


def test_a_model_that_answers_in_a_word_is_graded_exactly() -> None:
    """Wrong answers say nothing about it; four exact ones of five are enough at a share of 0.8, three of four are not."""
    assert grading_for(answered("405", "405.", "405", "405", "It was 405", "17", "18"), 0.8) == "exact"
    assert grading_for(answered("405", "405.", "405", "It was 405"), 0.8) == "contains"


def test_a_model_that_writes_sentences_or_knows_nothing_is_graded_by_what_its_answers_contain() -> None:
    assert grading_for(answered("It was 405", "There were 405 of them"), 0.8) == "contains"
    assert grading_for(answered("17"), 0.8) == "contains"
    assert grading_for([], 0.8) == "contains"


def test_saying_so_counts_where_the_gold_passage_is_missing_in_whatever_words(monkeypatch):
    """Also of a model that else answers exactly."""
    one = Example("When?", ("1841",), (Passage("In 1841."),), frozenset({0}))
    said = ["The passages do not mention it: no information.", "not stated", "1841"]
    monkeypatch.setattr(asking, "answer_texts", lambda generator, examples, alpha, **options: said)
    options = {"grading": "exact", "max_new_tokens": 9}
    assert asking.measure_quality(None, [one] * 3, 0.0, gold_missing=True, **options) == [1.0, 1.0, 0.0]
    assert asking.measure_quality(None, [one] * 3, 0.0, **options) == [0.0, 0.0, 1.0]
