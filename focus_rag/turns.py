"""Conversations in the shape that chat templates take."""

from __future__ import annotations

from collections.abc import Iterable

from focus_rag.errors import InvalidInputError


def chat_turns(messages: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """One system message first, then turns of alternating roles, as the strictest chat templates want them.

    System messages are joined, and so are neighbours of the same role; messages without text are left out.

    Args:
        messages: Role and text of each.

    Raises:
        InvalidInputError: There is no text at all.
    """
    system: list[str] = []
    turns: list[tuple[str, list[str]]] = []
    for role, text in messages:
        if not text.strip():
            continue
        if role == "system":
            system.append(text)
        elif turns and turns[-1][0] == role:
            turns[-1][1].append(text)
        else:
            turns.append((role, [text]))
    if system:
        turns.insert(0, ("system", system))
    if not turns:
        raise InvalidInputError("The messages hold no text: give the model at least one message that is not empty.")
    return [{"role": role, "content": "\n\n".join(texts)} for role, texts in turns]
