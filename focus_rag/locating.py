"""Find retrieved passages again in a text that somebody else assembled."""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

from focus_rag.passages import Passage

CharSpan = tuple[int, int]

SHORTEST = 16  # characters; shorter texts occur by chance
_WINDOW_WORDS = 8
_LONGEST_GROWTH = 1.5


def locate_passages(text: str, passages: Sequence[Passage]) -> list[CharSpan | None]:
    """Where each passage stands in a text.

    A passage is looked for verbatim (with its title, then without), then with any run of white space equal to any
    other, then by anchors: windows of eight words, the first and the last of which mark what is left of a truncated or
    split passage. Passages with the same text take its occurrences in order.

    Args:
        text: The assembled prompt.
        passages: Passages in any order.

    Returns:
        For every passage its characters `[start, end)`, or None where it does not occur. Texts under 16
        characters count only if they stand there verbatim, whole words.
    """
    searched = _Searched(text)
    return [searched.take(passage) for passage in passages]


class _Searched:
    """A text with its white space collapsed beside it, and the places already taken."""

    def __init__(self, text: str) -> None:
        self.text = text
        words = list(re.finditer(r"\S+", text))
        self.collapsed = " ".join(match.group() for match in words)
        self._starts: list[int] = []
        self._origins: list[int] = []
        position = 0
        for match in words:
            self._starts.append(position)
            self._origins.append(match.start())
            position += len(match.group()) + 1
        self._taken: list[CharSpan] = []

    def take(self, passage: Passage) -> CharSpan | None:
        span = next(
            (span for find in (self._verbatim, self._any_white_space, self._anchored)
             for content in dict.fromkeys((passage.content, passage.text))
             if (span := find(content)) is not None),
            None,
        )  # fmt: skip
        if span is not None:
            self._taken.append(span)
        return span

    def _free(self, span: CharSpan) -> bool:
        return all(span[1] <= start or end <= span[0] for start, end in self._taken)

    def _verbatim(self, content: str) -> CharSpan | None:
        wanted = content.strip()
        if not wanted:
            return None
        if len(wanted) < SHORTEST:
            matches = re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", self.text)
            return next((match.span() for match in matches if self._free(match.span())), None)
        start = self.text.find(wanted)
        while start >= 0:
            if self._free((start, start + len(wanted))):
                return start, start + len(wanted)
            start = self.text.find(wanted, start + 1)
        return None

    def _any_white_space(self, content: str) -> CharSpan | None:
        wanted = " ".join(content.split())
        if len(wanted) < SHORTEST:
            return None
        start = self.collapsed.find(wanted)
        while start >= 0:
            span = self._original(start, start + len(wanted))
            if self._free(span):
                return span
            start = self.collapsed.find(wanted, start + 1)
        return None

    def _anchored(self, content: str) -> CharSpan | None:
        words = content.split()
        windows = [
            " ".join(words[i : i + _WINDOW_WORDS]) for i in range(0, len(words) - _WINDOW_WORDS + 1, _WINDOW_WORDS // 2)
        ]
        found = [(start, start + len(window)) for window in windows if (start := self.collapsed.find(window)) >= 0]
        if not found:
            return None
        first, last = found[0][0], max(end for _, end in found)
        if last - first > _LONGEST_GROWTH * len(content):
            last = found[0][1]
        span = self._original(first, last)
        return span if self._free(span) else None

    def _original(self, start: int, end: int) -> CharSpan:
        return self._origin(start), self._origin(end - 1) + 1

    def _origin(self, position: int) -> int:
        word = bisect.bisect_right(self._starts, position) - 1
        return self._origins[word] + position - self._starts[word]
