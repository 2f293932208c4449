"""Real text as training matter: paragraphs, and sentences with a span left out.

The data are not part of the package; the training takes the path of a file in SQuAD format (JSON, gzip or
not).
"""

from __future__ import annotations

import gzip
import json
import random
import re
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


def load_real_text(path: Path, *, held_out: bool = False) -> RealText:
    """Read the paragraphs of `path`, leaving out one article in ten (or reading only those).

    Raises:
        InvalidInputError: No paragraph could be read.
    """
    paragraphs: dict[str, None] = {}
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for article in json.loads(raw)["data"]:
            if (crc32(article["title"].encode()) % 10 == 0) == held_out:
                for row in article["paragraphs"]:
                    paragraphs[" ".join(row["context"].split())] = None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"No real text could be read from {path}: {error}. Expected a file in SQuAD format.") from error
    if not paragraphs:
        raise InvalidInputError(f"{path} holds no paragraph: pass a file in SQuAD format.")
    return RealText(tuple(paragraphs))


def cloze(rng: random.Random, real: RealText) -> tuple[str, str, str]:
    """A question with a gap, the span that fills it, and the passage it is from.

    The span is a name or a number; the passage is shortened to a few sentences around the one with the gap.
    """
    while True:
        sentences = _SENTENCE.split(real.paragraph(rng))
        i = rng.randrange(len(sentences))
        spans = [found for found in _SPAN.finditer(sentences[i]) if found.start() > 0 and len(found.group()) <= 40]
        if not spans or not 30 <= len(sentences[i]) <= 300:
            continue
        span = rng.choice(spans)
        question = f"Fill the gap: {sentences[i][: span.start()]}___{sentences[i][span.end() :]}"
        first = max(0, i - rng.randint(0, 2))
        return question, span.group(), " ".join(sentences[first : i + rng.randint(1, 2)])
