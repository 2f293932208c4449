"""How much of the question stands in each passage, by its words: for passages that come without scores, and beside
scores that are blind to words.

LangChain's retrievers, for one, hand on no scores. The question and the passages are there all the same, and BM25 of
the one among the others, which asks no index and no model, finds the relevant passage nearly as often as the score of a
search by words over everything, and more often than that of a poor embedding (`docs/fit-notes.md`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from focus_rag.passages import Passage

Term = TypeVar("Term", str, tuple[str, str])

_K1, _B = 0.9, 0.4
_ANY = 0.5
"""What a word says that every passage holds, beside its rarity: one that lacks it is none of what was asked for."""
_PAIR = 0.6
"""What two neighbouring words of the question say that are neighbours in a passage too, against a single word: names
and phrases.
"""
_STEM = 6
"""Letters of a word that count: of most languages' inflections the rest is the ending."""
# Words of the languages written without spaces are taken to be pairs of neighbouring signs.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"(?=([{_UNSPACED}]{{2}}))|([^\W{_UNSPACED}]+)")
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]{{1,400}}")
_SIGN = re.compile(rf"(?!\d)[{_UNSPACED}]")  # numbers are words
# English words that ask or join; among few passages, rarity alone does not tell that they say nothing. In other
# languages it has to.
_ENGLISH = (
    "a about an and any are as at be been by can could did do does for from had has have how if in is it its many "
    "much of on or that the their there this those these to was were what when where which who whom whose why will "
    "with would you"
)
_SAY_NOTHING = frozenset(_ENGLISH.split())


def word_spans(text: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of every word; signs of the languages that are written without spaces count one by one,
    and what no word is as long as counts in parts.
    """
    return [match.span() for match in _UNIT.finditer(text)]


def terms_of(text: str) -> list[str]:
    """Words to search for; of the languages that are written without spaces, pairs of neighbouring signs."""
    return [pair or word for pair, word in _WORDS.findall(text)]


def signs_apart(text: str) -> str:
    """A text with spaces around every sign of the languages that are written without them, and single ones between
    words.
    """
    return " ".join(_SIGN.sub(r" \g<0> ", text).split())


def shared_word_scores(question: str, passages: Sequence[Passage]) -> list[float]:
    """BM25 of the question in each passage, its statistics those of these passages alone; higher is better, 0 shares
    nothing.

    Pairs of neighbouring words count beside single ones, and what a passage's title says counts twice.

    Args:
        question: What the passages were retrieved for.
        passages: In any order.
    """
    asked = _words(question)
    texts = [
        _words(passage.title or "") + _words(passage.content) for passage in passages
    ]  # which begins with the title itself
    by_pairs = _bm25(_pairs(asked), [_pairs(text) for text in texts])
    return [word + _PAIR * pair for word, pair in zip(_bm25(asked, texts), by_pairs, strict=True)]


def word_share(text: str, passage: Passage | None) -> float:
    """Share of a text's different words that stand in a passage, its title or its text; 0 without words, or without a
    passage.
    """
    words = set(_words(text))
    return len(words & set(_words(passage.content))) / len(words) if words and passage else 0.0


def _bm25(asked: Sequence[Term], texts: Sequence[Sequence[Term]]) -> list[float]:
    wanted = frozenset(asked)
    counts = [Counter(term for term in text if term in wanted) for text in texts]
    holders = Counter(term for count in counts for term in count)
    mean_length = sum(map(len, texts)) / max(len(texts), 1) or 1.0
    weights = {
        term: _ANY + math.log(1 + (len(texts) - holders[term] + 0.5) / (holders[term] + 0.5))
        for term in sorted(holders)
    }

    def score(count: Counter[Term], length: int) -> float:
        damping = _K1 * (1 - _B + _B * length / mean_length)
        return sum(weights[term] * count[term] * (_K1 + 1) / (count[term] + damping) for term in sorted(count))

    return [score(count, len(text)) for count, text in zip(counts, texts, strict=True)]


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(words))


def _words(text: str) -> list[str]:
    return [word[:_STEM] for word in terms_of(text.casefold()) if word not in _SAY_NOTHING]
