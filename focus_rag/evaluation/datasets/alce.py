"""Rows of ALCE (Gao et al. 2023, arXiv 2305.14627): answers over retrieved documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focus_rag.evaluation.datasets.rows import RowLeftOut, passages_by_answer


def alce_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in this library's schema.

    Accepted answers are the short answers of ASQA's `qa_pairs` or QAMPARI's `answers`. The files do not mark gold
    documents: those that hold an accepted answer are taken.

    Raises:
        RowLeftOut: Only a long answer (ELI5), which no match of text can score; or no document holds an answer.
    """
    pairs = [answer for pair in row.get("qa_pairs") or () for answer in pair["short_answers"]]
    listed = [answer for one in row.get("answers") or () for answer in (one if isinstance(one, list) else [one])]
    answers = pairs or listed
    if not answers:
        raise RowLeftOut("no short answer")
    return {
        "id": row.get("id") or row.get("sample_id"),
        "question": row["question"],
        "answers": answers,
        "passages": passages_by_answer(row["docs"], answers),
    }
