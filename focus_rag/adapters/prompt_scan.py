"""Look for many known texts in one prompt without comparing each of them everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

from focus_rag.locating import SHORTEST, locate_passages
from focus_rag.passages import Passage

SHORTEST_ANYWHERE: Final = SHORTEST
"""Shorter texts stand in a prompt by chance, so nobody is asked for them but who retrieved them."""

WordTriple = tuple[str, ...]

_ANCHOR_SLICE: Final = 96  # characters; five words and more in most languages that put spaces between words
_GAP: Final = 160  # characters that a prompt puts between two passages, mostly fewer


def word_triples(text: str) -> set[WordTriple]:
    """Every three words of a text in a row."""
    words = text.split()
    return set(zip(words, words[1:], words[2:], strict=False))


def anchors(text: str) -> tuple[WordTriple, ...]:
    """Word triples from up to five places of a text, none with its first or last word, which punctuation may touch.

    A prompt that holds the text, white space changed or an end cut off, has at least one of them. Empty for texts of
    fewer than five words.
    """
    if len(text) <= 2 * _ANCHOR_SLICE:
        words = text.split()[1:-1]
        places = {0, (len(words) - 3) // 2, len(words) - 3} if len(words) >= 3 else ()
        return tuple({tuple(words[i : i + 3]) for i in places})
    last = len(text) - _ANCHOR_SLICE
    slices = (text[last * i // 4 : last * i // 4 + _ANCHOR_SLICE].split()[1:-1] for i in range(5))
    return tuple(dict.fromkeys(tuple(words[:3]) for words in slices if len(words) >= 3))


def places_in(prompt: str, copies: Mapping[str, int], *, least: float = 0.0) -> dict[str, list[int]]:
    """Where texts stand in a prompt.

    Verbatim texts are told by searching on from the end of the one before, which is where prompts mostly put the
    next one; everything else (altered texts, one inside another, several copies) is left to `locate_passages`.

    Args:
        prompt: The prompt.
        copies: Texts without white space at their ends, likely order first, and how often each may be found.
        least: Share of a text that has to stand there, in characters.

    Returns:
        The first characters of every text that stands there.
    """
    spans: list[tuple[int, int, str]] = []
    missing: list[str] = []
    end = gap = 0
    for text in copies:
        start = -1
        if len(text) >= SHORTEST_ANYWHERE:
            # Prompts put the same few characters between all passages; comparing there is far cheaper than searching.
            if prompt.startswith(text, end + gap):
                start = end + gap
            else:
                start = prompt.find(text, end, end + len(text) + _GAP)
                if start < 0:
                    start = prompt.find(text)
                gap = max(start - end, 0)
        if start < 0:
            missing.append(text)
        else:
            end = start + len(text)
            spans.append((start, end, text))
    spans.sort()
    nested = any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))
    altered = _altered(prompt, missing)
    if not altered and not nested and all(copies[text] == 1 for _, _, text in spans):
        return {text: [start] for start, _, text in spans}
    verbatim = sorted((text for _, _, text in spans), key=len, reverse=True)
    wanted = [text for text in (*verbatim, *altered) for _ in range(copies[text])]
    places: dict[str, list[int]] = {}
    for text, span in zip(wanted, locate_passages(prompt, [Passage(text) for text in wanted]), strict=True):
        if span is not None and span[1] - span[0] >= least * len(" ".join(text.split())):
            places.setdefault(text, []).append(span[0])
    return places


def _altered(prompt: str, missing: list[str]) -> list[str]:
    """Texts that may stand in the prompt although they do not stand there verbatim, or are too short to tell."""
    if not missing:
        return []
    triples = word_triples(prompt)
    return [
        text
        for text in missing
        if (not triples.isdisjoint(anchors(text)) if len(text) >= SHORTEST_ANYWHERE else text and text in prompt)
    ]
