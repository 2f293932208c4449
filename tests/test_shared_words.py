"""Scores by the words that passages share with a question, for retrievals that bring none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_rag.passages import Passage
from focus_rag.shared_words import shared_word_scores


def best(question: str, *texts: str) -> int | None:
    scores = shared_word_scores(question, [Passage(text) for text in texts])
    return None if max(scores) == 0 else scores.index(max(scores))


@pytest.mark.parametrize(
    ("question", "texts", "expected"),
    [
        (
            "When was the mill of Ashford built?",
            ("The mill of Brook was built in 1841.", "The mill of Ashford was built in 1803.", "A bakery."),
            1,
        ),
        ("Who owned the bakeries?", ("The mill stands.", "A bakery was run by Anna."), None),  # "bakeri" and "bakery"
        ("Which carpenters lived there?", ("A mill.", "A carpenter."), 1),
        ("Wie heißt die Straße am Fluss?", ("Der Turm steht dort.", "Die STRASSE am FLUSS heißt Uferweg."), 1),
        ("東京の人口は何人ですか", ("大阪は商業の町です。", "東京都の人口は千四百万人である。"), 1),
        ("When was it?", ("It was then.", "When it was."), None),  # words that say nothing
        ("?!", ("a mill", "a bakery"), None),
    ],
)
def test_the_passage_that_shares_most_comes_first(question: str, texts: tuple[str, ...], expected: int | None) -> None:
    assert best(question, *texts) == expected


def test_rare_words_count_more_and_titles_count_as_text() -> None:
    passages = [
        Passage("It was built in 1803.", title="Ashford mill"),
        Passage("The mill by the mill."),
        Passage("A mill."),
    ]
    scores = shared_word_scores("When was the Ashford mill built?", passages)
    assert scores[0] == max(scores) and min(scores) > 0


def bm25(holders: int, texts: int, count: int, length: int, mean: float) -> float:
    rarity = math.log(1 + (texts - holders + 0.5) / (holders + 0.5))
    return (0.5 + rarity) * count * 1.9 / (count + 0.9 * (0.6 + 0.4 * length / mean))


def test_the_formula() -> None:
    passages = [Passage("red red mill"), Passage("blue mill"), Passage("green")]
    red = bm25(1, 3, 2, 3, (3 + 2 + 1) / 3)
    assert shared_word_scores("red?", passages) == pytest.approx([red, 0.0, 0.0])
    mills = bm25(2, 3, 1, 3, 2), bm25(2, 3, 1, 2, 2)
    pair = bm25(1, 3, 1, 2, (2 + 1 + 0) / 3)
    assert shared_word_scores("the red mill", passages) == pytest.approx([red + mills[0] + 0.6 * pair, mills[1], 0.0])
    titled = [Passage("red red mill"), Passage("mill", title="blue"), Passage("green")]
    assert shared_word_scores("blue", titled) == pytest.approx([0.0, bm25(1, 3, 2, 3, (3 + 3 + 1) / 3), 0.0])


def test_names_of_several_words_are_told_from_their_words() -> None:
    assert (
        best(
            "Who runs the New Ashford mill?",
            "New mills stand in Ashford, and a mill.",
            "Of New Ashford mill nothing is left.",
            "The mill is new.",
        )
        == 1
    )


@given(st.text(max_size=60), st.lists(st.text(max_size=80), max_size=6))
def test_any_text_is_scored_and_every_passage_for_itself(question: str, texts: list[str]) -> None:
    scores = shared_word_scores(question, [Passage(text) for text in texts])
    assert len(scores) == len(texts) and all(0 <= score < math.inf for score in scores)
    turned = shared_word_scores(question, [Passage(text) for text in reversed(texts)])
    assert turned[::-1] == pytest.approx(scores)
