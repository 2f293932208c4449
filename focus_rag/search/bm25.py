"""BM25 over a fixed list of texts: what generated questions and data sets without rankings are retrieved by."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_WORD = re.compile(r"\w+")
_STOP_WORDS = frozenset(
    ["a", "an", "and", "are", "at", "by", "did", "do", "does", "for", "from", "has", "have", "how", "in", "is", "it",
    "of", "on", "the", "to", "was", "were", "what", "when", "where", "which", "who", "with"]
)  # fmt: skip


class BM25:
    """Okapi BM25 over a fixed list of texts, dense in words and quick for some thousand texts.

    Args:
        texts: The corpus.
        k1: Saturation of repeated words.
        b: Weight of the length of a text.
    """

    def __init__(self, texts: list[str], k1: float = 0.9, b: float = 0.4) -> None:
        import numpy as np

        counts = [Counter(self._words(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=np.float64)
        saturation = k1 * (1 - b + b * lengths / lengths.mean())
        postings: dict[str, list[int]] = {}
        for i, count in enumerate(counts):
            for word in count:
                postings.setdefault(word, []).append(i)
        self._n = len(texts)
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for word, found in postings.items():
            rows = np.array(found)
            idf = np.log(1 + (self._n - len(found) + 0.5) / (len(found) + 0.5))
            frequency = np.array([counts[i][word] for i in found], dtype=np.float64)
            self._weights[word] = rows, idf * frequency * (k1 + 1) / (frequency + saturation[rows])

    @staticmethod
    def _words(text: str) -> list[str]:
        return [word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS]

    def scores(self, query: str) -> np.ndarray:
        """One score for each text of the corpus; higher is better."""
        import numpy as np

        total = np.zeros(self._n)
        for word in self._words(query):
            if word in self._weights:
                rows, weights = self._weights[word]
                total[rows] += weights
        return total
