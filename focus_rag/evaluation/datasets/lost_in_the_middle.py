"""Rows of lost-in-the-middle (Liu et al. 2023, arXiv 2307.03172): question answering over documents, key-value
retrieval.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from focus_rag.evaluation.datasets.rows import passage_row, passages_by_answer


def lost_in_the_middle_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A question-answering row: `ctxs` are the passages, `isgold` marks the gold one; where nothing is marked, the
    answer tells.

    Raises:
        RowLeftOut: Nothing is marked, and no passage holds an accepted answer.
    """
    passages = (
        [passage_row(one, bool(one["isgold"])) for one in row["ctxs"]]
        if all("isgold" in one for one in row["ctxs"])
        else passages_by_answer(row["ctxs"], row["answers"])
    )
    return {"id": row.get("id"), "question": row["question"], "answers": row["answers"], "passages": passages}


def key_value_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A key-value row: every pair is a passage, the one of the asked key is gold, its value the answer."""
    return {
        "id": row.get("id"),
        "question": f'Which value belongs to the key "{row["key"]}"?',
        "answers": [row["value"]],
        "passages": [
            {"text": f'"{key}": "{value}"', "is_gold": key == row["key"]} for key, value in row["ordered_kv_records"]
        ],
    }
