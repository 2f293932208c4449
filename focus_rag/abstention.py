"""How an answer says that the passages do not hold it, and what a model is asked to say then."""

from __future__ import annotations

from typing import Final

NOT_STATED: Final = "not stated"
"""What the default instruction asks a model to say where the passages do not hold the answer."""

# What instructed models say in its place.
_ABSTENTIONS: Final = (
    NOT_STATED, "not mentioned", "not provided", "not given", "not specified", "not contain", "no answer",
    "no information", "unanswerable", "cannot be answered", "can not be answered", "cannot answer", "unknown",
    "don't know", "do not know",
)  # fmt: skip


def abstains(answer: str) -> bool:
    """Whether an answer says that it has none, in one of the usual phrases or by saying nothing at all."""
    given = " ".join(answer.lower().replace("\u2019", "'").split())
    return not given or any(phrase in given for phrase in _ABSTENTIONS)
