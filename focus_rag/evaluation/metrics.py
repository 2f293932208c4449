"""Scores of one answer: the published scorers' definitions, written out."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from focus_rag.abstention import abstains
from focus_rag.errors import MissingDependencyError
from focus_rag.fitting.grading import Grading

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised_answer(text: str) -> str:
    """Lower case, punctuation deleted, articles taken out, white space joined (SQuAD v1.1's evaluation script).

    Rajpurkar et al. 2016, arXiv 1606.05250. Unlike `focus_rag.examples.normalised`, "e.g." becomes one word here: the
    two differ, and figures that are to be compared with published ones need this one.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references after normalisation, else 0."""
    given = normalised_answer(answer)
    return float(any(given == normalised_answer(reference) for reference in references))


def substring_match(answer: str, references: Sequence[str]) -> float:
    """1 if a reference stands in the answer's first line after normalisation, else 0.

    `best_subspan_em` of lost-in-the-middle (Liu et al. 2023, arXiv 2307.03172), whose driver also cuts the answer at
    its first line break.
    """
    given = normalised_answer(answer.split("\n")[0].strip())
    return float(any(normalised_answer(reference) in given for reference in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Best harmonic mean of token precision and recall over the references (SQuAD v1.1)."""
    given = Counter(normalised_answer(answer).split())
    return max((_f1(given, Counter(normalised_answer(reference).split())) for reference in references), default=0.0)


def _f1(given: Counter[str], wanted: Counter[str]) -> float:
    common = sum((given & wanted).values())
    if not common:
        return 0.0
    precision, recall = common / given.total(), common / wanted.total()
    return 2 * precision * recall / (precision + recall)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """Best ROUGE-L F-measure over the references, stemmed, by the rouge-score package (Lin 2004).

    Raises:
        MissingDependencyError: rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    return max((float(scorer.score(reference, answer)["rougeL"].fmeasure) for reference in references), default=0.0)


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingDependencyError("ROUGE-L needs rouge-score: pip install 'focus-rag[eval]'.") from error
    return RougeScorer(["rougeL"], use_stemmer=True)


def text_scores(
    answer: str,
    references: Sequence[str],
    *,
    abstain: bool,
    wrong: Sequence[str] = (),
    grading: Grading = "contains",
) -> dict[str, float]:
    """All scores of one answer that text alone decides.

    Args:
        answer: What the model wrote.
        references: Accepted answers.
        abstain: Whether the passages do not hold the answer, so that saying so is right.
        wrong: Answers that misleading passages support.
        grading: Whether `quality` is the exact match or the substring match.

    Returns:
        `quality` (one of the two matches, or abstention where that is right), and for answerable questions
        `exact_match`, `substring_match`, `token_f1` and `rouge_l`; `abstained`; `wrong_answer` where misleading
        passages exist. ROUGE-L is left out where rouge-score is not installed.
    """
    scores = {"abstained": float(abstains(answer))}
    if abstain:
        return {"quality": scores["abstained"], **scores}
    measures: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": exact_match, "substring_match": substring_match, "token_f1": token_f1, "rouge_l": rouge_l,
    }  # fmt: skip
    for name, measure in measures.items():
        try:
            scores[name] = measure(answer, references)
        except MissingDependencyError:
            continue
    if wrong:
        misled = substring_match(answer, wrong) and not substring_match(answer, references)
        scores["wrong_answer"] = float(misled)
    return {"quality": scores["exact_match" if grading == "exact" else "substring_match"], **scores}
