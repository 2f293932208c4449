"""Rows of HELMET (Yen et al. 2024, arXiv 2410.02694): question answering over retrieved passages, and re-ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focus_rag.evaluation.datasets.rows import RowLeftOut, passage_row, passages_by_answer

_MARKS = ("isgold", "has_answer", "hasanswer")


def helmet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question-answering row. Gold is marked by `isgold` or `has_answer`; unmarked, it is found by the answer.

    Raises:
        RowLeftOut: Nothing is marked, and no passage holds an answer.
    """
    answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
    mark = next((name for name in _MARKS if any(name in one for one in row["ctxs"])), None)
    passages = (
        passages_by_answer(row["ctxs"], answers)
        if mark is None
        else [passage_row(one, str(one.get(mark)).lower() in ("true", "1", "1.0")) for one in row["ctxs"]]
    )
    return {"id": row.get("id"), "question": row["question"], "answers": answers, "passages": passages}


def reranking_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A re-ranking row (MS MARCO): labels say how relevant a passage is, and the ids of the best are the answer.

    The passage's id is put before its text, as HELMET's prompt does, so that a model can name it. HELMET asks for all
    ids in order; here the best one is asked for, which is what substring match can score.

    Raises:
        RowLeftOut: No passage is labelled relevant.
    """
    best = max(float(one["label"]) for one in row["ctxs"])
    if best <= 0:
        raise RowLeftOut("no passage is labelled relevant")
    passages = [
        {
            **passage_row(one, float(one["label"]) == best),
            "title": None,
            "text": f"ID {one['id']}. {one['title'] + ': ' if one.get('title') else ''}{one['text']}",
        }
        for one in row["ctxs"]
    ]
    answers = [str(one["id"]) for one in passages if one["is_gold"]]
    return {
        "id": row.get("id") or row.get("qid"),
        "question": f"Which passage answers this query best? Answer with its ID. {row['query']}",
        "query": row["query"],
        "answers": answers,
        "passages": passages,
    }
