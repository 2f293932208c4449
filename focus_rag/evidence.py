"""Which sentences an answer stands on: those that the contextual heads attended to, and that share its words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from focus_rag.passages import Passage
from focus_rag.shared_words import shared_word_scores

_MOST = 3
_LOOKED = 0.5
"""What attention says beside shared words, which tell better where an answer is copied and nothing where it is put in
other words.
"""
_SHARE_OF_BEST = 0.5
"""What a sentence has to have of the best one's support to stand beside it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A sentence that an answer stands on.

    Attributes:
        passage: Index of its passage among those that were given.
        text: The sentence as it stands in the prompt.
        start: First character of it in the passage's text; None where it stands there in other characters than in the
            prompt, white space apart.
        end: The character after its last one.
        attention: Its share of the attention that the contextual heads paid to passages while answering; None where
            that was not measured.
    """

    passage: int
    text: str
    start: int | None
    end: int | None
    attention: float | None


def best_supported(
    answer: str, sentences: Sequence[Passage], of_passage: Sequence[int], attention: Sequence[float]
) -> list[int]:
    """Indices of the sentences that an answer stands on, the best first: few, for one that has less than half of the
    best one's support is left out, and so is one that its passage says a second time.

    Support is the words shared with the answer (BM25) and half as much the attention, each as a share of the highest
    among the sentences.

    Args:
        answer: The answer.
        sentences: Sentences, under the titles of their passages.
        of_passage: Which passage each belongs to.
        attention: Attention paid to each while answering; empty where nothing was measured.
    """
    if not answer.strip() or not sentences:
        return []
    words = _of_highest(shared_word_scores(answer, sentences))
    support = [
        word + _LOOKED * looked
        for word, looked in zip(words, _of_highest(attention or [0.0] * len(sentences)), strict=True)
    ]
    limit = _SHARE_OF_BEST * max(support)
    best = sorted(
        (index for index, value in enumerate(support) if value >= limit > 0), key=lambda index: -support[index]
    )
    first_said = {(of_passage[index], sentences[index].text): index for index in reversed(best)}
    return [index for index in best if first_said[of_passage[index], sentences[index].text] == index][:_MOST]


def values_of(answer: str) -> str:
    """What an answer by a JSON Schema says: its texts and numbers without the names they stand under; the answer itself
    where it is cut off.
    """
    try:
        return " ".join(map(str, _leaves(json.loads(answer))))
    except (ValueError, RecursionError):  # not whole, or nested deeper than anybody reads
        return answer


def _leaves(value: Any) -> Iterator[str | float]:
    if isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield value


def _of_highest(values: Sequence[float]) -> list[float]:
    highest = max(values)
    return [value / highest if highest > 0 else 0.0 for value in values]
