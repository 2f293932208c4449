"""Rows of ALCE (Gao et al. 2023, arXiv 2305.14627): long answers over retrieved documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focus_rag.examples import holds_answer


def alce_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in this library's schema.

    Accepted answers are the short answers of ASQA's `qa_pairs` or QAMPARI's `answers`, else the long `answer`. The files
    do not mark gold documents: those that hold an accepted answer are taken.
    """
    pairs = [answer for pair in row.get("qa_pairs") or () for answer in pair["short_answers"]]
    listed = [answer for one in row.get("answers") or () for answer in (one if isinstance(one, list) else [one])]
    answers = pairs or listed or [row["answer"]]
    return {
        "id": row.get("id") or row.get("sample_id"),
        "question": row["question"],
        "answers": answers,
        "passages": [
            {
                "text": one["text"],
                "title": one.get("title"),
                "score": one.get("score"),
                "id": one.get("id"),
                "is_gold": holds_answer(one["text"], answers),
            }
            for one in row["docs"]
        ],
    }
