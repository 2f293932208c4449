"""How far the passages of a retrieval lie behind the best one: by the retriever's scores, by the words that they share
with the question, or by both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from statistics import fmean
from typing import Literal

from focus_rag.errors import InvalidInputError
from focus_rag.passages import Passage
from focus_rag.score_order import EQUAL, ScoreKind, best_first, orientation
from focus_rag.shared_words import shared_word_scores

Signal = Literal["scores", "words", "both"]
"""What tells passages apart: the retriever's scores, the words that a passage shares with the question, or both
together.
"""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Passages told apart.

    Attributes:
        behind: How far each of them lies behind the best one, in shares of the distance to the worst one; infinitely
            far where nothing is known of it.
        by: What told them apart.
    """

    behind: tuple[float, ...]
    by: Signal


def rank_passages(
    passages: Sequence[Passage],
    question: str | None,
    *,
    by: Signal = "both",
    without_scores: bool = True,
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
) -> Ranking | None:
    """Tell passages apart.

    How far a passage lies behind the best one is measured by scores and by words, each in shares of its own range: 0 is
    the best passage, 1 the worst. The two are added, each weighted by its mean over the passages: a signal by which one
    passage stands out counts more than one that spreads them evenly.

    Args:
        passages: What was retrieved, in retrieval order.
        question: What they were retrieved for; None where that is not known, and words do not count then.
        by: What to go by.
        without_scores: Whether words stand in where scores were to count and tell nothing.
        higher_is_better: Orientation of the scores, where known.
        score_kind: What the scores are, where known.

    Returns:
        None where nothing tells them apart. Scores are left out where neither an argument nor their order says which
        end of them is the better one.

    Raises:
        InvalidInputError: `score_kind` is unknown.
    """
    by_score = None if by == "words" else _behind_in_score(passages, higher_is_better, score_kind)
    words_count = by == "words" or (without_scores if by_score is None else by == "both")
    by_words = _behind(shared_word_scores(question, passages)) if question and words_count else None
    if by_words is None:
        return None if by_score is None else Ranking(tuple(by_score), "scores")
    if by_score is None:
        return Ranking(tuple(by_words), "words")
    score_says, words_say = fmean(one for one in by_score if one <= 1.0), fmean(by_words)
    # A passage without a score counts as the worst scored one.
    together = _behind(
        [-(score_says * min(one, 1.0) + words_say * other) for one, other in zip(by_score, by_words, strict=True)]
    )
    return None if together is None else Ranking(tuple(together), "both")


def by_relevance(
    passages: Sequence[Passage],
    question: str | None,
    *,
    by: Signal = "both",
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
) -> list[int]:
    """Indices of the passages, the best first, by scores and shared words together; where neither tells them apart, as
    `best_first` has them. Repeats of a text come after all that are said once, and those without any text last.

    Args:
        passages: What was retrieved, in retrieval order.
        question: What they were retrieved for, where known.
        by: What to go by.
        higher_is_better: Orientation of the scores, where known.
        score_kind: What the scores are, where known.

    Raises:
        InvalidInputError: `question` is no text, or `score_kind` is unknown.
    """
    if question is not None and not isinstance(question, str):
        raise InvalidInputError(
            f"What passages were retrieved for must be a string or None; got {type(question).__name__}."
        )
    ranking = rank_passages(passages, question, by=by, higher_is_better=higher_is_better, score_kind=score_kind)
    if ranking is None:
        order = best_first(
            [passage.score for passage in passages], higher_is_better=higher_is_better, score_kind=score_kind
        )
    else:
        order = sorted(range(len(passages)), key=ranking.behind.__getitem__)
    seen: set[str] = set()

    def comes_last(place: int) -> int:
        """0 for a text that is said first, 1 for a repeat, 2 for none."""
        text = passages[place].content.strip()
        is_repeat = text in seen
        seen.add(text)
        return 2 if not text else int(is_repeat)

    return sorted(order, key=comes_last)


def best_passages(
    passages: Sequence[Passage],
    question: str | None,
    keep: int,
    *,
    by: Signal = "both",
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
) -> list[int]:
    """Indices of the best passages, in the order in which they were retrieved: those to keep where a question has one
    answer and the others are noise.

    It asks no model. What is left out cannot be read: a question that several passages answer together, or a summary,
    may need it.

    Args:
        passages: What was retrieved, in retrieval order.
        question: What they were retrieved for, where known.
        keep: How many to keep, where there are more; a text that was retrieved twice takes one place, unless all are
            kept.
        by: What to go by: `words` where the scores of one list come from several retrievers, and are not to be
            compared.
        higher_is_better: Orientation of the scores, where known.
        score_kind: What the scores are, where known.

    Raises:
        InvalidInputError: `keep` is not a whole number above 0, `question` is no text, or `score_kind` is unknown.
    """
    require_count(keep)
    return sorted(
        by_relevance(passages, question, by=by, higher_is_better=higher_is_better, score_kind=score_kind)[:keep]
    )


def require_count(keep: object) -> None:
    """Refuse what is not a number of passages to keep.

    Raises:
        InvalidInputError: It is not a whole number above 0.
    """
    if not isinstance(keep, Integral) or isinstance(keep, bool) or keep < 1:
        raise InvalidInputError(f"The number of passages to keep must be a whole number of at least 1; got {keep!r}.")


def _behind_in_score(
    passages: Sequence[Passage], higher_is_better: bool | None, score_kind: ScoreKind | None
) -> list[float] | None:
    scores = [passage.score for passage in passages]
    rises = orientation(scores, higher_is_better=higher_is_better, score_kind=score_kind)
    if rises is None:
        return None
    return _behind([score if score is None or rises else -score for score in scores])


def _behind(scores: Sequence[float | None]) -> list[float] | None:
    """How far each score lies below the best one, in shares of the range; infinitely far where there is none. None
    where all are equal, but for rounding.
    """
    halves = [None if score is None else score / 2 for score in scores]  # the range of all floats would be infinite
    known = [half for half in halves if half is not None]
    best, worst = max(known, default=0.0), min(known, default=0.0)
    if best - worst <= EQUAL * max(map(abs, (best, worst))):
        return None
    return [math.inf if half is None else (best - half) / (best - worst) for half in halves]
