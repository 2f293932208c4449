"""Rows of lost-in-the-middle (Liu et al. 2023, arXiv 2307.03172): multi-document question answering over NQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lost_in_the_middle_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One row in this library's schema: `ctxs` are the passages, `isgold` marks the gold one."""
    return {
        "id": row.get("id"),
        "question": row["question"],
        "answers": row["answers"],
        "passages": [
            {
                "text": one["text"],
                "title": one.get("title"),
                "score": one.get("score"),
                "id": one.get("id"),
                "is_gold": bool(one.get("isgold")),
            }
            for one in row["ctxs"]
        ],
    }
