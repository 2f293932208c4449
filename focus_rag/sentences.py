"""Where sentences end."""

from __future__ import annotations

import re
from typing import Final

# Not after the initial of a name or a title before it: "J. R. Lee", "Dr. Lee".
SENTENCE_END: Final = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Dr|Mr|Ms|St)\.)(?<!\bMrs\.)(?<!\bProf\.)[\"')\]]*\s+(?=[\"'(\[]?[^\W_a-z])"
)
# What ends a sentence as it is laid out: a blank line, the next item of a list; and the full stops after which no space
# has to follow.
_ANY_END: Final = re.compile(
    rf"{SENTENCE_END.pattern}|\n\s*\n\s*|\n\s*(?=(?:[-*\u2022]|\d+\))\s)"
    r"|(?<=[.:;!?])\n\s*(?=\d+\.\s)|(?<=[\u0964\u0965\u3002\uff01\uff1f])\s*"
)
_BEFORE_A_NUMBER: Final = re.compile(r"\b(?:Art|Ch|Eq|Figs?|Nos?|Nr|pp?|Sec|Vol)\.\s+\Z", re.IGNORECASE)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of each sentence of a text, white space around it left out."""
    spans, start = [], 0
    for end in (*(match.end() for match in _ANY_END.finditer(text) if not _goes_on(match)), len(text)):
        piece = text[start:end].rstrip()
        first = start + len(piece) - len(piece.lstrip())
        if first < start + len(piece):
            spans.append((first, start + len(piece)))
        start = end
    return spans


def _goes_on(match: re.Match[str]) -> bool:
    """Whether what looks like an end is an abbreviation's: in the same paragraph small letters follow, of whatever
    script, or the number that it announces.
    """
    text, end = match.string, match.end()
    following = text[end : end + 1]
    if match.group().count("\n") > 1:
        return False
    return following.islower() or (
        following.isdigit() and _BEFORE_A_NUMBER.search(text, max(end - 12, 0), end) is not None
    )
