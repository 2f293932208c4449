"""Find retrieved passages again in a text that somebody else assembled."""

from __future__ import annotations

import bisect
import re
import statistics
from collections.abc import Iterator, Sequence

from focus_rag.passages import Passage

CharSpan = tuple[int, int]

SHORTEST = 16  # characters; shorter texts occur by chance
_WINDOW_WORDS = 8
_LONGEST_GROWTH = 1.5


def locate_passages(text: str, passages: Sequence[Passage]) -> list[CharSpan | None]:
    """Where each passage stands in a text.

    A passage is looked for verbatim (with its title, then without), then with any run of white space equal to any
    other, then by anchors: windows of eight words, the first and the last of which mark what is left of a truncated or
    split passage. Passages with the same text take its occurrences in order; what stands there unaltered takes its
    place before anything altered is looked for.

    Args:
        text: The assembled prompt.
        passages: Passages in any order.

    Returns:
        For every passage its characters `[start, end)`, or None where it does not occur. Texts under 16
        characters count only if they stand there verbatim, whole words.
    """
    searched = _Searched(text)
    spans: list[CharSpan | None] = [None] * len(passages)
    # What stands there unaltered comes first, so that what is left of another passage is not looked for in its place.
    for find in (searched.verbatim, searched.any_white_space, searched.anchored):
        for place, passage in enumerate(passages):
            if spans[place] is None:
                contents = dict.fromkeys((passage.content, passage.text))
                found = next((span for content in contents if (span := find(content)) is not None), None)
                if found is not None:
                    spans[place] = found
                    searched.taken.append(found)
    return spans


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
        self.taken: list[CharSpan] = []

    def verbatim(self, content: str) -> CharSpan | None:
        wanted = content.strip()
        if len(wanted) >= SHORTEST:
            starts = _occurrences(self.text, wanted)
        elif wanted:
            starts = (match.start() for match in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", self.text))
        else:
            return None
        return next((span for start in starts if self._is_free(span := (start, start + len(wanted)))), None)

    def any_white_space(self, content: str) -> CharSpan | None:
        wanted = " ".join(content.split())
        return self._in_collapsed(wanted) if len(wanted) >= SHORTEST else None

    def anchored(self, content: str) -> CharSpan | None:
        words = content.split()
        found: list[tuple[int, CharSpan]] = []
        position = 0
        for first in range(0, len(words) - _WINDOW_WORDS + 1, _WINDOW_WORDS // 2):
            window = " ".join(words[first : first + _WINDOW_WORDS])
            if (span := self._in_collapsed(window)) is not None:
                found.append((span[0] - position, span))
            position += len(" ".join(words[first : first + _WINDOW_WORDS // 2])) + 1
        if not found:
            return None
        # Windows that many passages share (headings, notices) may have been found elsewhere: what most of them say
        # counts.
        begin = statistics.median_low([begin for begin, _ in found])
        near = [span for other, span in found if abs(other - begin) <= _LONGEST_GROWTH / 2 * len(content)]
        span = min(start for start, _ in near), max(end for _, end in near)
        return span if self._is_free(span) else None

    def _in_collapsed(self, wanted: str) -> CharSpan | None:
        spans = (self._original(start, start + len(wanted)) for start in _occurrences(self.collapsed, wanted))
        return next((span for span in spans if self._is_free(span)), None)

    def _is_free(self, span: CharSpan) -> bool:
        return all(span[1] <= start or end <= span[0] for start, end in self.taken)

    def _original(self, start: int, end: int) -> CharSpan:
        return self._origin(start), self._origin(end - 1) + 1

    def _origin(self, position: int) -> int:
        word = bisect.bisect_right(self._starts, position) - 1
        return self._origins[word] + position - self._starts[word]


def _occurrences(text: str, wanted: str) -> Iterator[int]:
    start = text.find(wanted)
    while start >= 0:
        yield start
        start = text.find(wanted, start + 1)
