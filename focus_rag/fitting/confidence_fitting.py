"""The last step of a fit: how likely an answer is right, told from what speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from focus_rag.abstention import abstains
from focus_rag.answers import Answer
from focus_rag.confidence import Confidence, Support
from focus_rag.examples import Example
from focus_rag.fitting.asking import answers_to, is_answered_elsewhere
from focus_rag.fitting.grading import Grading, grade
from focus_rag.generator import FocusGenerator

_FEWEST = 20
"""Right answers, and wrong ones, that a fit takes."""
_FOLDS, _RESAMPLES = 5, 500
_LOST = 0.05


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer that is meant as one.

    Attributes:
        key: Of its question.
        support: What speaks for it.
        is_right: Whether it is an accepted one; never where the gold passage was missing.
        gold_missing: Whether that was so.
    """

    key: str
    support: Support
    is_right: bool
    gold_missing: bool


def judged(
    answers: Sequence[Answer], questions: Sequence[Example], grading: Grading, *, gold_missing: bool
) -> list[Judged]:
    """Answers with whether they are right; those that say that there is none are left out."""
    return [
        Judged(
            question.key,
            answer.support,
            not gold_missing and grade(answer.text, question.answers, grading) == 1.0,
            gold_missing,
        )
        for question, answer in zip(questions, answers, strict=True)
        if answer.support is not None and not abstains(answer.text)
    ]


def ask_and_judge(
    generator: FocusGenerator,
    questions: Sequence[Example],
    grading: Grading,
    *,
    max_new_tokens: int,
    gold_missing: bool,
) -> list[Judged]:
    """What a generator answers by itself, judged; without their gold passages, questions that other passages answer too
    are not asked.
    """
    asked = [one for one in questions if not (gold_missing and is_answered_elsewhere(one))]
    answers = answers_to(
        generator, asked, "auto", max_new_tokens=max_new_tokens, gold_missing=gold_missing, split="auto"
    )
    return judged(answers, asked, grading, gold_missing=gold_missing)


def weights_at(missing_share: float, missing: NDArray[Any]) -> NDArray[Any]:
    """Weight of each answer, so that those without their gold passage (`missing`) are as many as is assumed."""
    weights: NDArray[Any] = np.where(
        missing, missing_share / max(missing.mean(), 1e-9), (1 - missing_share) / (1 - missing.mean())
    )
    return weights


def fit_confidence(
    found: Sequence[Judged], missing_share: float, seed: int
) -> tuple[Confidence | None, dict[str, Any]]:
    """A logistic model of what speaks for answers, and how well it tells those of questions that it has not seen.

    Args:
        found: Answers to questions with and without their gold passages.
        missing_share: Share of questions whose gold passage is taken to be missing, whatever the share among these.
        seed: Of the resampling.

    Returns:
        The model, None where right or wrong answers, or their questions, are too few, and figures: the area under the
        curve of right against wrong answers in cross-validation by question with its 95% interval (bootstrap over
        questions), and the share of the wrong ones that lie below a threshold under which one right answer in twenty
        lies.
    """
    is_right = np.array([one.is_right for one in found], dtype=bool)
    missing = np.array([one.gold_missing for one in found], dtype=bool)
    share = missing_share if missing.any() else 0.0
    figures: dict[str, Any] = {"answers": len(found), "right": int(is_right.sum()), "missing_share": share}
    questions = np.array([one.key for one in found])
    sides = [is_right, ~is_right]
    if any(side.sum() < _FEWEST or len(set(questions[side])) < _FOLDS for side in sides):
        return None, figures
    supports = np.array([astuple(one.support) for one in found])
    weights = weights_at(share, missing)
    scaler = StandardScaler().fit(supports)
    scaled, model = scaler.transform(supports), LogisticRegression()
    folds = StratifiedGroupKFold(_FOLDS)
    unseen = cross_val_predict(
        model, scaled, is_right, groups=questions, cv=folds, method="predict_proba", params={"sample_weight": weights}
    )[:, 1]
    figures["auroc"] = area_under_curve(unseen, is_right, questions, seed)
    threshold = np.quantile(unseen[is_right], _LOST)
    figures["found"] = {
        "lost": _LOST,
        "wrong": float((unseen[~is_right] < threshold).mean()),
        "missing": float((unseen[missing] < threshold).mean()) if missing.any() else None,
    }
    model.fit(scaled, is_right, sample_weight=weights)
    slopes = model.coef_[0] / scaler.scale_
    first, second, third, fourth = (float(value) for value in slopes)
    return Confidence(
        intercept=float(model.intercept_[0] - slopes @ scaler.mean_), weights=(first, second, third, fourth)
    ), figures


def area_under_curve(
    told: NDArray[Any], is_right: NDArray[Any], questions: Sequence[str] | NDArray[Any], seed: int
) -> dict[str, float]:
    """How often a right answer is told from a wrong one, with its 95% interval by a bootstrap over questions.

    Args:
        told: What each answer `(answers,)` is rated.
        is_right: Whether it is right.
        questions: What tells its question from others.
        seed: Of the resampling.
    """
    rng = np.random.default_rng(seed)
    different, groups = np.unique(questions, return_inverse=True)
    of_question = [np.flatnonzero(groups == group) for group in range(len(different))]
    areas = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([of_question[index] for index in rng.integers(len(of_question), size=len(of_question))])
        if 0 < is_right[drawn].sum() < len(drawn):
            areas.append(roc_auc_score(is_right[drawn], told[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return {"mean": float(roc_auc_score(is_right, told)), "low": float(low), "high": float(high), "n": len(of_question)}
