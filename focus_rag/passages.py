"""Retrieval input in plain Python: what was retrieved, and what that says about the retrieval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from focus_rag.errors import InvalidInputError


def usable_score(score: object) -> float | None:
    """A finite float, or None: retrievers hand out strings, NaN and numpy scalars, and none may stop an answer."""
    if type(score) is float:
        return score if math.isfinite(score) else None
    if score is None or isinstance(score, bool):
        return None
    try:
        value = float(score)  # type: ignore[arg-type]
    except Exception:  # whatever the type of a stranger raises
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Passage:
    """One retrieved passage.

    Attributes:
        text: The passage as the retriever returned it.
        score: The retriever's score in whatever unit it has. Numbers and numeric strings become floats; anything
            else, NaN and infinities included, counts as no score.
        title: Shown before the text in the prompt, if given.
        id: The caller's own identifier, handed through untouched.

    Raises:
        InvalidInputError: `text` or `title` is not a string.
    """

    text: str
    score: float | None = None
    title: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InvalidInputError(
                f"A passage's text must be a string, got {type(self.text).__name__}: pass the document's text itself."
            )
        if self.title is not None and not isinstance(self.title, str):
            raise InvalidInputError(f"A passage's title must be a string or None, got {type(self.title).__name__}.")
        object.__setattr__(self, "score", usable_score(self.score))

    @property
    def content(self) -> str:
        """Title and text as they stand in the prompt."""
        return f"{self.title}: {self.text}" if self.title else self.text


def as_passages(
    values: Sequence[Any], convert: Callable[[Any, Any], Passage | None] | None = None
) -> tuple[Passage, ...]:
    """Passages from passages, texts, objects of a framework, or pairs of one of these and a score.

    Args:
        values: What was given; a score in a pair wins over the object's own.
        convert: Makes a passage of a framework's object and the score given with it (None: none was); None for an
            object that it does not know.

    Raises:
        InvalidInputError: Something else was given.
    """
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable) or hasattr(values, "model_fields"):
        raise InvalidInputError(
            f"passages must be a list of passages; got one {type(values).__name__}. Wrap it: [passage]."
        )
    passages = []
    for value in values:
        given, score = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        passage = None if convert is None else convert(given, score)
        if passage is None and isinstance(given, str):
            passage = Passage(given, score)
        elif passage is None and isinstance(given, Passage):
            passage = given if score is None else replace(given, score=score)
        if passage is None:
            raise InvalidInputError(
                "passages must hold Passage, str, documents or nodes of the framework, or pairs of one of them and "
                f"a score; got {type(given).__name__}."
            )
        passages.append(passage)
    return tuple(passages)


@dataclass(frozen=True, slots=True)
class RetrievalSignal:
    """What the retrieval of one request says about how hard to focus.

    Attributes:
        n_passages: How many passages are in the prompt.
        noise: Expected share of irrelevant passages, in [0, 1].
        source: Where `noise` comes from: the retrieval scores, the passage count alone, or the caller.
        reason: One sentence for people.
        in_order: Whether the best score comes first and so on down; None where the scores do not tell.
    """

    n_passages: int
    noise: float
    source: Literal["scores", "count", "given"]
    reason: str
    in_order: bool | None = None

    def __post_init__(self) -> None:
        if self.n_passages < 0:
            raise InvalidInputError(f"n_passages must not be negative, got {self.n_passages}.")
        if not 0.0 <= self.noise <= 1.0:
            raise InvalidInputError(
                f"noise is the expected share of irrelevant passages and lies in [0, 1], got {self.noise!r}."
            )
