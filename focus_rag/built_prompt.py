"""A prompt as token ids, and which of them are which passage and which sentence."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

from focus_rag.locating import CharSpan

TokenSpan = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ShownSentence:
    """A sentence of a passage as it stands in a prompt.

    Attributes:
        passage: Index of the passage.
        text: The sentence.
        tokens: Its tokens `[start, end)`.
    """

    passage: int
    text: str
    tokens: TokenSpan


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt ready for the model.

    Attributes:
        text: The rendered prompt.
        input_ids: Its tokens, special tokens included.
        spans: For every passage of the request its tokens `[start, end)`, None where it is not in the prompt.
        dropped: Indices of passages left out so that the prompt fits the window.
        sentences: The sentences of the passages' texts, their titles left out.
    """

    text: str
    input_ids: tuple[int, ...]
    spans: tuple[TokenSpan | None, ...]
    dropped: tuple[int, ...] = ()
    sentences: tuple[ShownSentence, ...] = ()

    @property
    def passages_at(self) -> int | None:
        """Position of the first token of the first passage; None without one."""
        return min((span[0] for span in self.spans if span is not None), default=None)

    def spans_in(self, length: int) -> list[TokenSpan | None]:
        """The spans in a row that is padded on the left to `length` tokens."""
        padding = length - len(self.input_ids)
        return [None if span is None else (span[0] + padding, span[1] + padding) for span in self.spans]

    @property
    def placed(self) -> list[int]:
        """Indices of the passages in the prompt, in the order in which they stand there."""
        return [
            index for _, index in sorted((span, index) for index, span in enumerate(self.spans) if span is not None)
        ]

    def after_passages_in(self, length: int) -> int:
        """Position after the last passage in such a row, that of its last token where nothing follows: it chooses the
        first token of the answer. `length` without a passage.
        """
        ends = [span[1] for span in self.spans_in(length) if span is not None]
        return min(max(ends), length - 1) if ends else length


def token_span(offsets: Sequence[tuple[int, int]], span: CharSpan) -> TokenSpan | None:
    """Tokens that overlap some characters; None where there are none.

    Args:
        offsets: Characters `[start, end)` of each token, in the order of the text, see `in_order`.
        span: Characters `[start, end)`.
    """
    first = bisect_right(offsets, span[0], key=itemgetter(1))
    last = bisect_left(offsets, span[1], lo=first, key=itemgetter(0))
    while first < last and offsets[first][0] == offsets[first][1]:  # a token of no characters overlaps none
        first += 1
    while first < last and offsets[last - 1][0] == offsets[last - 1][1]:
        last -= 1
    return (first, last) if first < last and span[0] < span[1] else None


def in_order(offsets: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Offsets as a tokenizer gives them, with tokens of no characters, special ones mostly, where they stand: they say
    (0, 0) anywhere.
    """
    ordered, position = [], 0
    for start, end in offsets:
        ordered.append((start, end) if start < end else (position, position))
        position = max(position, end)
    return ordered
