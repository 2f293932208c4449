"""Where sentences end."""

from __future__ import annotations

import re
from typing import Final

# Not after the initial of a name, a title before it, or what always goes on: "J. R. Lee", "Dr. Lee", "cf. Lee".
_SENTENCE_END: Final = re.compile(
    r"(?<=[.!?\u061f\u06d4])(?<!\b[A-Z]\.)(?<!\b(?:Dr|Mr|Ms|St|Lt|cf|vs)\.)"
    r"(?<!\b(?:Mrs|Gen|Col|Sgt|Rev|Hon|Sen|Rep|Gov|e\.g|i\.e)\.)(?<!\b(?:Prof|Capt|Pres)\.)"
    r"[\"')\]\u201d\u2019\u00bb]*\s+(?=[\"'(\[\u201c\u2018\u00ab]?[^\W_a-z])"
)
# What ends a sentence as it is laid out: a blank line, the next item of a list; and the full stops after which no space
# has to follow.
_ANY_END: Final = re.compile(
    rf"{_SENTENCE_END.pattern}|\n\s*\n\s*|\n\s*(?=(?:[-*\u2022]|\d+\))\s)"
    r"|(?<=[.:;!?])\n\s*(?=\d+\.\s)|(?<=[\u0964\u0965\u3002\uff01\uff1f])[\u201d\u2019\u300d\u300f\uff09]*\s*"
)
_BEFORE_A_NUMBER: Final = re.compile(
    r"\b(?:Art|Ch|Eq|Figs?|Nos?|Nr|pp?|Sec|Vol|approx|ca?|b|d|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.\s+\Z",
    re.IGNORECASE,
)
_BEFORE_A_BRACKET: Final = re.compile(r"\bal\.\s+\Z")
_NUMBER_OF_AN_ITEM: Final = re.compile(r"(?:\A|\n)[ \t]*\d{1,3}\.\s+\Z")
_DAY: Final = re.compile(r"\b[0-3]?\d\.\s+\Z")
_GERMAN_MONTH: Final = re.compile(
    "Januar|Februar|M\u00e4rz|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember"
)


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
    """Whether what looks like an end is an abbreviation's or a number's: in the same paragraph small letters follow, of
    whatever script, or what it announces.
    """
    text, end = match.string, match.end()
    following = text[end : end + 1]
    if match.group().count("\n") > 1:
        return False
    near = max(end - 12, 0)
    return (
        following.islower()
        or _NUMBER_OF_AN_ITEM.search(text, near, end) is not None
        or (following == "(" and _BEFORE_A_BRACKET.search(text, near, end) is not None)
        or (following.isdigit() and _BEFORE_A_NUMBER.search(text, near, end) is not None)
        or (_GERMAN_MONTH.match(text, end) is not None and _DAY.search(text, near, end) is not None)
    )
