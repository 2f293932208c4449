"""What the readers of all formats share: a passage in this library's schema, and rows that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from focus_rag.examples import holds_answer

NO_GOLD = "no passage holds an accepted answer, and the format does not mark one"


class RowLeftOut(Exception):
    """A row that follows its format and cannot be used; the message says why."""


def passage_row(one: Mapping[str, Any], is_gold: bool) -> dict[str, Any]:
    """A passage of the schema from one with `text` and perhaps `title`, `score` and `id`."""
    return {
        "text": one["text"],
        "title": one.get("title"),
        "score": one.get("score"),
        "id": one.get("id"),
        "is_gold": is_gold,
    }


def passages_by_answer(given: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Passages of a format that marks none as gold: those that hold an accepted answer are taken.

    Raises:
        RowLeftOut: None does. That such a question should go unanswered would be a guess: the answer may stand there in
            other words.
    """
    passages = [passage_row(one, holds_answer(f"{one.get('title') or ''} {one['text']}", answers)) for one in given]
    if not any(one["is_gold"] for one in passages):
        raise RowLeftOut(NO_GOLD)
    return passages
