"""Whether an answer counts as right, for choosing by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from focus_rag.examples import exact_answer, holds_answer

Grading = Literal["exact", "contains"]
"""`exact`: the text is an accepted answer. `contains`: an accepted answer stands in the text as whole words. Both after
normalisation.
"""


def grade(text: str, answers: Sequence[str], grading: Grading) -> float:
    """1 for a right answer, else 0."""
    return float((exact_answer if grading == "exact" else holds_answer)(text, answers))


def grading_for(answered: Iterable[tuple[str, Sequence[str]]], exact_share: float) -> Grading:
    """How to grade a model, by how it answers where it has nothing to be distracted by.

    `contains` cannot see that an answer no longer ends after the value, which is what too much focus does to a model
    that answers in a word; `exact` counts every answer of a model that writes sentences as wrong.

    Args:
        answered: What the model wrote and the accepted answers, each question with its gold passages alone.
        exact_share: Grade exactly if at least this share of the texts that hold an answer are nothing but that answer.
    """
    holding = [(text, answers) for text, answers in answered if holds_answer(text, answers)]
    exact = sum(exact_answer(text, answers) for text, answers in holding)
    return "exact" if holding and exact >= exact_share * len(holding) else "contains"
