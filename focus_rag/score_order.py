"""Which of two retrieval scores is the better one.

Scores come with unknown scale and sign. Whether higher is better is told by the caller, by what the retriever computes,
or by the order in which it returned them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final, Literal, TypeGuard, get_args

from focus_rag.errors import InvalidInputError

ScoreKind = Literal[
    "cosine",
    "inner_product",
    "distance",
    "l2",
    "l2_squared",
    "bm25",
    "rrf",
    "cross_encoder_logit",
    "probability",
    "unknown",
]

_KINDS: Final = frozenset(get_args(ScoreKind))
_DISTANCES: Final = frozenset({"distance", "l2", "l2_squared"})

EQUAL: Final = 1e-9
"""Ranges below this share of the magnitude are rounding, not evidence."""

# A list that turns runs one way all the same when its steps that way are so many standard deviations more than those of
# a shuffled one.
_ONE_WAY: Final = 3


def is_score_kind(value: object) -> TypeGuard[ScoreKind]:
    """Whether a value is one of `ScoreKind`."""
    return isinstance(value, str) and value in _KINDS


def require_score_kind(value: object) -> None:
    """Refuse what is given for a kind of score and is none.

    Raises:
        InvalidInputError: It is neither one of `ScoreKind` nor None.
    """
    if value is not None and not is_score_kind(value):
        raise InvalidInputError(
            f"Unknown score_kind {value!r}: use one of {', '.join(sorted(_KINDS))}, or leave it out."
        )


def orientation(
    scores: Sequence[float | None], *, higher_is_better: bool | None = None, score_kind: ScoreKind | None = None
) -> bool | None:
    """Whether higher scores are better, by the caller, the score kind or the order at retrieval; None where none of
    them tells it.

    Args:
        scores: One per passage, in retrieval order; None where there is none.
        higher_is_better: What the caller says.
        score_kind: What the retriever computes, where known.

    Raises:
        InvalidInputError: `score_kind` is unknown.
    """
    require_score_kind(score_kind)
    if higher_is_better is not None:
        return bool(higher_is_better)  # numpy's too, of which none is the same as False
    if score_kind is not None and score_kind != "unknown":
        return score_kind not in _DISTANCES
    return orientation_by_order([score for score in scores if score is not None])


def orientation_by_order(scores: Sequence[float]) -> bool | None:
    """Whether higher scores are better, by the order in which a retriever returned them; None where a shuffled list
    could look so.

    Steps that are rounding, next to the scores themselves, are none.
    """
    least = EQUAL * max(map(abs, scores), default=0.0)
    pairs = list(itertools.pairwise(scores))
    rises = sum(after - before > least for before, after in pairs)
    falls = sum(before - after > least for before, after in pairs)
    steps = rises + falls
    # Of a random order half of the steps rise, give or take sqrt((steps + 2) / 12) (Eulerian numbers).
    by_chance = steps / 2 + _ONE_WAY * math.sqrt((steps + 2) / 12)
    if steps == 0 or (min(rises, falls) > 0 and max(rises, falls) < by_chance):
        return None
    return falls > rises


def rises_are_better(
    scores: Sequence[float | None], *, higher_is_better: bool | None = None, score_kind: ScoreKind | None = None
) -> bool:
    """As `orientation`; where nothing tells it, the higher counts as better, which most are.

    Raises:
        InvalidInputError: `score_kind` is unknown.
    """
    return orientation(scores, higher_is_better=higher_is_better, score_kind=score_kind) is not False


def best_first(
    scores: Sequence[float | None], *, higher_is_better: bool | None = None, score_kind: ScoreKind | None = None
) -> list[int]:
    """Indices of the scores from the best to the worst, and those of None at the end. Where nothing tells which end is
    the better one, the higher counts as better. Among equals the earlier one goes first.

    Raises:
        InvalidInputError: `score_kind` is unknown.
    """
    sign = 1.0 if rises_are_better(scores, higher_is_better=higher_is_better, score_kind=score_kind) else -1.0

    def behind(index: int) -> float:
        score = scores[index]
        return math.inf if score is None else -sign * score

    return sorted(range(len(scores)), key=behind)


def is_best_first(
    scores: Sequence[float | None],
    shown: Sequence[int],
    *,
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
) -> bool | None:
    """Whether scores never get better down the list as it is shown; None where fewer than two are known or all are
    equal.

    Args:
        scores: One per passage, in retrieval order.
        shown: Indices of the passages in the order in which the model sees them.
        higher_is_better: What the caller says.
        score_kind: What the retriever computes, where known.

    Raises:
        InvalidInputError: `score_kind` is unknown.
    """
    sign = 1.0 if rises_are_better(scores, higher_is_better=higher_is_better, score_kind=score_kind) else -1.0
    known = [score for index in shown if (score := scores[index]) is not None]
    if len(set(known)) < 2:
        return None
    return all(sign * after <= sign * before for before, after in itertools.pairwise(known))
