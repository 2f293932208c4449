"""Find retrieved passages again in a text that somebody else assembled."""

from __future__ import annotations

import bisect
import re
import statistics
from collections.abc import Callable, Sequence
from functools import cached_property

from focus_rag.passages import Passage

CharSpan = tuple[int, int]

SHORTEST = 16  # characters; shorter texts occur by chance
_WINDOW_WORDS = 8
_LONGEST_GROWTH = 1.5
_SHORTEST_PART = 3  # characters of a word that is cut
_LEAST_COPY = 0.5  # of a passage
_LONGEST_INSERTION = 48  # characters that are said within a passage and are not of it: a line's number, a page's head
_MOST_TRIED = 64  # places that hold the inside of a window, but not its first and last word


def locate_passages(text: str, passages: Sequence[Passage]) -> list[CharSpan | None]:
    """Where each passage stands in a text.

    A passage is looked for verbatim (with its title, then without), then with any run of white space equal to any
    other, then by anchors: windows of eight words, the first and the last of which mark what is left of a truncated or
    split passage, as far around them as the text goes on like the passage. Passages with the same text take its
    occurrences in order; what stands there unaltered takes its place before anything altered is looked for.

    Args:
        text: The assembled prompt.
        passages: Passages in any order.

    Returns:
        For every passage its characters `[start, end)`, or None where it does not occur. Texts under 16
        characters count only if they stand there verbatim, whole words.
    """
    return _Searched(text).places_of(passages)


def locate_copies(
    text: str, passages: Sequence[Passage], repeated: Sequence[Passage]
) -> tuple[list[CharSpan | None], list[CharSpan]]:
    """Like `locate_passages`, and where else some passages stand: a prompt may hold one more often than it was
    retrieved.

    Args:
        text: The assembled prompt.
        passages: Passages in any order.
        repeated: Passages of at least 16 characters of which every copy is wanted, altered or not. A copy has at least
            half of the passage; a shorter quotation is none.

    Returns:
        As `locate_passages`; and the other copies, in no order.
    """
    searched = _Searched(text)
    spans = searched.places_of(passages)
    long = [Passage(one) for one in dict.fromkeys(one.text for one in repeated) if len(one.strip()) >= SHORTEST]
    copies: list[CharSpan] = []
    while found := [span for span in searched.places_of(long, least=_LEAST_COPY) if span is not None]:
        copies += found
    return spans, copies


class _Searched:
    """A text with its white space collapsed beside it, and the places already taken."""

    def __init__(self, text: str) -> None:
        self._text = text
        matches = list(re.finditer(r"\S+", text))
        self._words = [match.group() for match in matches]
        self._collapsed = " ".join(self._words)
        self._origins = [match.start() for match in matches]
        self._starts: list[int] = []
        position = 0
        for word in self._words:
            self._starts.append(position)
            position += len(word) + 1
        self._taken: list[CharSpan] = []  # in order, none over another
        # What is taken stays so.
        self._searched_to: dict[tuple[str, bool], int] = {}
        self._windows_to: dict[str, int] = {}

    def places_of(self, passages: Sequence[Passage], *, least: float = 0.0) -> list[CharSpan | None]:
        """Where each passage, or so large a share of it, stands among what is free; that is taken then."""
        spans: list[CharSpan | None] = [None] * len(passages)
        wanted = [(place, passage.content) for place, passage in enumerate(passages)]
        untitled = [(place, passage.text) for place, passage in enumerate(passages) if passage.text != passage.content]
        # What stands there unaltered comes first, so that what is left of another is not looked for in its place, and a
        # passage that holds another one before that one.
        for find in (self._verbatim, self._any_white_space, self._anchored):
            for contents in (wanted, untitled):
                for place, content in sorted(contents, key=lambda one: -len(one[1])):
                    found = find(content) if spans[place] is None else None
                    if found is not None and found[1] - found[0] >= least * len(" ".join(passages[place].text.split())):
                        spans[place] = found
                        bisect.insort(self._taken, found)
        return spans

    def _verbatim(self, content: str) -> CharSpan | None:
        wanted = content.strip()
        if len(wanted) >= SHORTEST:
            return self._first_free(wanted, lambda begin: self._text.find(wanted, begin))
        if not wanted:
            return None
        whole = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
        return self._first_free(
            wanted, lambda begin: match.start() if (match := whole.search(self._text, begin)) else -1
        )

    def _any_white_space(self, content: str) -> CharSpan | None:
        wanted = " ".join(content.split())
        if len(wanted) < SHORTEST:
            return None
        return self._first_free(wanted, lambda begin: self._collapsed.find(wanted, begin), collapsed=True)

    def _anchored(self, content: str) -> CharSpan | None:
        words = content.split()
        whole = " ".join(words)
        found: list[tuple[int, int, int]] = []  # where a window stands here, where it ends, where in the passage
        position = 0
        for first in range(len(words) - _WINDOW_WORDS + 1):
            window = words[first : first + _WINDOW_WORDS]
            if (start := self._window(window)) is not None:
                found.append((start, start + len(" ".join(window)), position))
            position += len(window[0]) + 1
        if not found:
            return None
        # Windows that many passages share (headings, notices) may have been found elsewhere: what most of them say
        # counts.
        begin = statistics.median_low([start - position for start, _, position in found])
        near = [one for one in found if abs(one[0] - one[2] - begin) <= _LONGEST_GROWTH / 2 * len(content)]
        # Of these, the ones with nothing of another passage between them.
        start, end, _ = min(near, key=lambda one: abs(one[0] - one[2] - begin))
        before, after = self._free_around(start, end)
        near = _longest_run([one for one in near if before <= one[0] and one[1] <= after])
        start, _, position = min(near)
        begun, end, last = max(near)
        start -= _length_alike(whole[:position][::-1], self._collapsed[before:start][::-1])
        end += _length_alike(whole[last + end - begun :], self._collapsed[end:after])
        return self._original(start, end)

    def _window(self, window: Sequence[str]) -> int | None:
        """Where a window first stands in free text with its white space collapsed; other characters may touch it."""
        first, *inside, last = window
        key = " ".join(inside)
        places = self._insides.get(key, [])
        at, tried = self._windows_to.get(key, 0), 0
        while at < len(places) and tried < _MOST_TRIED:
            word = places[at]
            if not (self._words[word - 1].endswith(first) and self._words[word + len(inside)].startswith(last)):
                at, tried = at + 1, tried + 1
                continue
            start = self._starts[word] - 1 - len(first)
            taken_until = self._taken_until(self._original(start, start + len(" ".join(window))))
            if taken_until is None:
                return start
            at = max(at + 1, bisect.bisect_left(places, bisect.bisect_left(self._origins, taken_until)))
            if not tried:
                self._windows_to[key] = at
        return None

    @cached_property
    def _insides(self) -> dict[str, list[int]]:
        """At which words begin all runs of words that are as many as a window has between its first and its last."""
        found: dict[str, list[int]] = {}
        for word in range(1, len(self._words) - _WINDOW_WORDS + 2):
            found.setdefault(" ".join(self._words[word : word + _WINDOW_WORDS - 2]), []).append(word)
        return found

    def _first_free(self, wanted: str, find: Callable[[int], int], *, collapsed: bool = False) -> CharSpan | None:
        """The first free place of a string.

        Args:
            wanted: The string.
            find: Where it stands next from a character on; -1 for nowhere.
            collapsed: Whether that is about the text with its white space collapsed.
        """
        key = (wanted, collapsed)
        start = find(self._searched_to.get(key, 0))
        while start >= 0:
            self._searched_to[key] = start
            end = start + len(wanted)
            span = self._original(start, end) if collapsed else (start, end)
            taken_until = self._taken_until(span)
            if taken_until is None:
                return span
            start = find(max(start + 1, self._in_collapsed(taken_until) if collapsed else taken_until))
        self._searched_to[key] = len(self._text)
        return None

    def _taken_until(self, span: CharSpan) -> int | None:
        """Where the last thing ends that takes part of a span; None if the span is free."""
        last = bisect.bisect_left(self._taken, (span[1],)) - 1
        return self._taken[last][1] if last >= 0 and self._taken[last][1] > span[0] else None

    def _free_around(self, start: int, end: int) -> CharSpan:
        """How far the free text around a free span reaches; all with white space collapsed."""
        following = bisect.bisect_left(self._taken, self._original(start, end))
        before = self._in_collapsed(self._taken[following - 1][1]) if following > 0 else 0
        after = self._in_collapsed(self._taken[following][0]) if following < len(self._taken) else len(self._collapsed)
        return before, after

    def _original(self, start: int, end: int) -> CharSpan:
        return self._origin(start), self._origin(end - 1) + 1

    def _origin(self, position: int) -> int:
        word = bisect.bisect_right(self._starts, position) - 1
        return self._origins[word] + position - self._starts[word]

    def _in_collapsed(self, position: int) -> int:
        word = bisect.bisect_right(self._origins, position) - 1
        return self._starts[word] + min(position - self._origins[word], len(self._words[word])) if word >= 0 else 0


def _longest_run(windows: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The longest of the stretches between which a text has much more than the passage: the parts of one that stands in
    two places, in two turns of a conversation, say, are not joined over what is said in between.

    Args:
        windows: Where each stands in the text, where it ends, and where it stands in the passage.
    """
    runs: list[list[tuple[int, int, int]]] = []
    for window in sorted(windows):
        before = runs[-1][-1] if runs else None
        if before is None or (window[0] - before[0]) - (window[2] - before[2]) > _LONGEST_INSERTION:
            runs.append([])
        runs[-1].append(window)
    return max(runs, key=lambda run: run[-1][1] - run[0][0])


def _length_alike(one: str, other: str) -> int:
    """Up to which character two texts begin alike, less the first letters of words that are not the same."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    part = length - (one.rfind(" ", 0, length) + 1)
    is_whole = {one[length : length + 1], other[length : length + 1]} <= {"", " "}
    return len(one[: length if is_whole or part >= _SHORTEST_PART else length - part].rstrip())
