"""Real text as training matter: paragraphs, and sentences with a span left out.

The data are not part of the package; the training takes the path of a file in SQuAD format (JSON, gzip or
not).
"""

from __future__ import annotations

import gzip
import json
import random
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from focus_rag.errors import InvalidInputError

_SENTENCE = re.compile(r"(?<=[.!?]) +(?=[A-Z])")
_SPAN = re.compile(r"\b(?:[A-Z][\w-]+(?: (?:of |the |and )?[A-Z][\w-]+)*|\d[\d,.]*\d|\d+)\b")


@dataclass(frozen=True)
class RealText:
    """Paragraphs of real articles."""

    paragraphs: tuple[str, ...]

    def paragraph(self, rng: random.Random) -> str:
        return rng.choice(self.paragraphs)


def is_held_out(title: str) -> bool:
    """Whether an article is one of the tenth that is kept out of the training."""
    return crc32(title.encode()) % 10 == 0


def sentence_ranges(text: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of every sentence."""
    starts = [0, *(gap.end() for gap in _SENTENCE.finditer(text))]
    ends = [*(gap.start() for gap in _SENTENCE.finditer(text)), len(text)]
    return list(zip(starts, ends, strict=True))


def fillings(sentence: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of the names and numbers of a sentence that a gap can ask for."""
    spans = [found.span() for found in _SPAN.finditer(sentence)]
    return [(start, end) for start, end in spans if start > 0 and end - start <= 40]


def load_real_text(path: Path, *, held_out: bool = False) -> RealText:
    """Read the paragraphs of `path`, leaving out one article in ten (or reading only those).

    Raises:
        InvalidInputError: No paragraph could be read.
    """
    paragraphs: dict[str, None] = {}
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for article in json.loads(raw)["data"]:
            if is_held_out(article["title"]) == held_out:
                for row in article["paragraphs"]:
                    paragraphs[" ".join(row["context"].split())] = None
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise InvalidInputError(
            f"No real text could be read from {path}: {error}. Expected a file in SQuAD format."
        ) from error
    if not paragraphs:
        raise InvalidInputError(f"{path} holds no paragraph: pass a file in SQuAD format.")
    return RealText(tuple(paragraphs))


def cloze(rng: random.Random, real: RealText) -> tuple[str, str, str]:
    """A question with a gap, the span that fills it, and the passage it is from.

    The span is a name or a number; the passage is shortened to a few sentences around the one with the gap.
    """
    while True:
        paragraph = real.paragraph(rng)
        sentences = [paragraph[start:end] for start, end in sentence_ranges(paragraph)]
        i = rng.randrange(len(sentences))
        spans = fillings(sentences[i])
        if not spans or not 30 <= len(sentences[i]) <= 300:
            continue
        start, end = rng.choice(spans)
        question = f"Fill the gap: {sentences[i][:start]}___{sentences[i][end:]}"
        first = max(0, i - rng.randint(0, 2))
        return question, sentences[i][start:end], " ".join(sentences[first : i + rng.randint(1, 2)])
