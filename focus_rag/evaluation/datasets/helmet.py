"""Rows of HELMET (Yen et al. 2024, arXiv 2410.02694): question answering over retrieved passages, and re-ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focus_rag.examples import holds_answer


def helmet_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question-answering row. Gold is marked by `has_answer` or `isgold`; unmarked, it is found by the answer."""
    answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
    passages = []
    for one in row["ctxs"]:
        marked = next((one[name] for name in ("isgold", "has_answer", "hasanswer") if name in one), None)
        gold = holds_answer(one["text"], answers) if marked is None else bool(marked)
        passages.append(
            {
                "text": one["text"],
                "title": one.get("title"),
                "score": one.get("score"),
                "id": one.get("id"),
                "is_gold": gold,
            }
        )
    return {"id": row.get("id"), "question": row["question"], "answers": answers, "passages": passages}


def reranking_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A re-ranking row (MS MARCO): labels say how relevant a passage is, and the ids of the best are the answer.

    The passage's id is put before its text, as HELMET's prompt does, so that a model can name it.
    """
    best = max(float(one["label"]) for one in row["ctxs"])
    if best <= 0:
        raise ValueError("no passage is labelled relevant")
    passages = [
        {"text": f"ID {one['id']}. {one['text']}", "id": one["id"], "is_gold": float(one["label"]) == best}
        for one in row["ctxs"]
    ]
    answers = [str(one["id"]) for one in passages if one["is_gold"]]
    return {
        "id": row.get("id") or row.get("qid"),
        "question": f"Which passage answers this query best? Answer with its ID. {row['query']}",
        "answers": answers,
        "passages": passages,
    }
