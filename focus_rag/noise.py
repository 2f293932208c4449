"""Retrieval scores of unknown scale and sign -> noise, the expected share of irrelevant passages.

The estimate is ``1 - expected relevant passages / passages`` with

    expected relevant = P(found) * stand-outs

- *Stand-outs* is the effective number of passages at the top: the participation ratio ``1 / sum(p_i ** 2)``
  of a softmax over the scores measured in units of their own range. Ten equal scores give 10, one far above
  the rest gives 1.
- *P(found)* says whether the top is a find at all: a logistic function of how far the best score rises above
  the mean, again in units of the range. Flat lists come from retrievals that found nothing far more often
  than from ones that found ten answers.

Both features ignore shifts and positive rescalings, so squared L2, inner product and BM25 may be handed over
as they are. The shape of a list cannot tell "all good" from "all bad"; only a known scale can: for
`score_kind` "probability" and "cross_encoder_logit" the expected number of relevant passages is the sum of
the probabilities, and for "cosine" and "bm25" a score of zero or less is irrelevant for certain. With fewer than
three scores, or with equal ones alone, the count speaks, as if one passage were relevant: ``1 - 1 / n``.
So does a list that only repeats ranks (reciprocal rank fusion of one list, equal steps).

How good that is (benchmarks/noise_estimate.py). The logistic function was fitted on BM25 scores of the train questions
of NQ, SQuAD and PopQA, 20 passages each cut to the top 3, 5, 10 or 15, then moved to a find rate of 85%; that rate and
the sharpness were set by hand with these figures in view. On their dev questions (100, 300, 100), the one relevant
passage withheld from a quarter of them, the root mean square error is 0.104, 0.094, 0.084 (the count alone: 0.127,
0.110, 0.098), the rank correlation with the true noise 0.40, 0.52, 0.62 (0.35, 0.48, 0.60), the AUC for "the relevant
passage is there" at equal counts 0.63, 0.69, 0.74; on cosines of the TF-IDF search in `focus_rag.search.passage_index`
the AUC is lower, 0.56 to 0.66. Where several passages are relevant the estimate is worse than the count: HotpotQA 0.233
against 0.191 (50 questions), MuSiQue 0.137 against 0.116 (50), RAMDocs, where most are relevant, 0.591 against 0.527
(249). So hand over `noise=` or a `score_kind` with a known scale where there is one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from focus_rag.errors import InvalidInputError
from focus_rag.passages import Passage, RetrievalSignal, usable_score
from focus_rag.score_order import EQUAL, ScoreKind, is_best_first, require_score_kind, rises_are_better

_ZERO_IS_IRRELEVANT: Final = frozenset({"cosine", "bm25"})

# P(found) = sigmoid(_FOUND_SLOPE * (rise - _FOUND_MIDPOINT)), rise = (best - mean) / (best - worst).
_FOUND_SLOPE: Final = 6.3
_FOUND_MIDPOINT: Final = 0.37
# Softmax sharpness over one range: a passage a fortieth of the range below the best weighs 1/e of it.
_SHARPNESS: Final = 40.0
# Two scores always have the same shape, so they say nothing.
_FEWEST_FOR_SHAPE: Final = 3
_FEWEST_FOR_RANKS: Final = 4


@dataclass(frozen=True, slots=True)
class _Estimate:
    noise: float
    source: Literal["scores", "count"]
    reason: str


def estimate_noise(
    scores: Iterable[object],
    *,
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
) -> float:
    """Expected share of irrelevant passages behind these scores.

    Args:
        scores: One per passage, in retrieval order. None, NaN, infinities and strings that are no number
            count as missing; the passages without a score are taken to be as noisy as the others.
        higher_is_better: Orientation. By default the score kind tells it, else the order: rising scores are
            distances. Where neither tells it, the higher counts as better.
        score_kind: What the retriever computes, where known. It is believed.

    Returns:
        Noise in [0, 1]: 0 where every passage is relevant. Without usable scores `1 - 1 / n`; 0 for no
        passages.

    Raises:
        InvalidInputError: `score_kind` is not one of `ScoreKind`.
    """
    values = [usable_score(score) for score in scores]
    return _estimate(values, higher_is_better, score_kind).noise


def signal_of(
    passages: Sequence[Passage],
    *,
    higher_is_better: bool | None = None,
    score_kind: ScoreKind | None = None,
    noise: float | None = None,
    shown: Sequence[int] | None = None,
) -> RetrievalSignal:
    """What the retrieved passages of one request say about how hard to focus.

    Args:
        passages: In retrieval order.
        higher_is_better: See `estimate_noise`.
        score_kind: See `estimate_noise`.
        noise: The caller's own knowledge, in [0, 1]; it wins over the scores.
        shown: Indices of the passages in the order in which the model sees them; by default as they were retrieved.

    Raises:
        InvalidInputError: `noise` is not a number in [0, 1], or `score_kind` is unknown.
    """
    n = len(passages)
    scores = [passage.score for passage in passages]
    in_order = is_best_first(
        scores, range(n) if shown is None else shown, higher_is_better=higher_is_better, score_kind=score_kind
    )
    if noise is not None:
        given = usable_score(noise)
        if given is None:
            raise InvalidInputError(
                f"noise is the expected share of irrelevant passages, a number in [0, 1]; got {noise!r}."
            )
        return RetrievalSignal(
            n, given, "given", f"the caller says that {given:.0%} of {n} passages are irrelevant", in_order
        )
    estimate = _estimate(scores, higher_is_better, score_kind)
    return RetrievalSignal(n, estimate.noise, estimate.source, estimate.reason, in_order)


def _estimate(scores: Sequence[float | None], higher_is_better: bool | None, score_kind: ScoreKind | None) -> _Estimate:
    require_score_kind(score_kind)
    n = len(scores)
    known = [score for score in scores if score is not None]
    if n == 0:
        return _Estimate(0.0, "count", "nothing was retrieved")
    if not known:
        return _from_count(n, "no usable scores")
    if score_kind in ("probability", "cross_encoder_logit"):
        relevant = sum(_probability(score, score_kind) for score in known)
        return _from_relevant(relevant, len(known), "the scores are probabilities of relevance")
    if score_kind == "rrf" or _repeats_ranks(known):
        return _from_count(n, "the scores only repeat the ranks")

    rises = rises_are_better(known, higher_is_better=higher_is_better, score_kind=score_kind)
    # Where less is better these are distances of that kind, whose zero is the best there is.
    plausible = [not rises or score > 0 or score_kind not in _ZERO_IS_IRRELEVANT for score in known]
    if not rises:
        known = [-score for score in known]
    if not any(plausible):
        return _Estimate(
            1.0,
            "scores",
            f"no passage has anything in common with the question ({score_kind} of zero or less)",
        )
    if len(known) < _FEWEST_FOR_SHAPE:
        return _from_count(n, "too few scores to have a shape")
    scale = max(abs(score) for score in known) or 1.0
    known = [score / scale for score in known]
    best, worst = max(known), min(known)
    spread = best - worst
    if spread <= EQUAL:
        return _from_count(n, "all scores are equal")
    rise = (best - sum(known) / len(known)) / spread
    found = _sigmoid(_FOUND_SLOPE * (rise - _FOUND_MIDPOINT))
    weights = [
        math.exp(_SHARPNESS * (score - best) / spread) for score, may_be in zip(known, plausible, strict=True) if may_be
    ]
    standing_out = sum(weights) ** 2 / sum(weight * weight for weight in weights)
    return _from_relevant(
        found * standing_out,
        len(known),
        f"{standing_out:.1f} passages stand out in score, a find at {found:.0%}",
    )


def _from_count(n: int, why: str) -> _Estimate:
    return _Estimate(1.0 - 1.0 / n, "count", f"{why}: one passage of {n} is taken to be relevant")


def _from_relevant(relevant: float, n: int, why: str) -> _Estimate:
    return _Estimate(
        min(max(1.0 - relevant / n, 0.0), 1.0), "scores", f"{why}: about {relevant:.1f} of {n} are relevant"
    )


def _probability(score: float, score_kind: ScoreKind) -> float:
    return _sigmoid(score) if score_kind == "cross_encoder_logit" else min(max(score, 0.0), 1.0)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _repeats_ranks(scores: Sequence[float]) -> bool:
    """Whether the scores are a function of rank alone: equal steps, or `1 / (k + rank)` up to a factor."""
    if len(scores) < _FEWEST_FOR_RANKS:
        return False
    ordered = sorted(scores, reverse=True)
    if _equal_steps(ordered):
        return True
    return ordered[-1] > 1e-300 and _equal_steps([1.0 / score for score in ordered])


def _equal_steps(ordered: Sequence[float]) -> bool:
    scale = max(abs(value) for value in ordered) or 1.0
    steps = [(after - before) / scale for before, after in itertools.pairwise(ordered)]
    mean = sum(steps) / len(steps)
    return abs(mean) > EQUAL and all(abs(step - mean) <= 0.01 * abs(mean) for step in steps)
