"""Every error this library raises on purpose: what happened, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class FocusRagError(Exception):
    """Base of all errors raised by focus_rag."""


class InvalidInputError(FocusRagError, ValueError):
    """An argument, a request or an example that cannot be used as it is."""


class PromptTooLongError(InvalidInputError):
    """The prompt does not fit the model's window; one laid out here, not even with every passage dropped."""


class ProfileError(FocusRagError, ValueError):
    """A profile that cannot be read, written or used."""


class ProfileMismatchError(ProfileError):
    """A profile that was made for another model than the one it is applied to."""


class UnsupportedModelError(FocusRagError, ValueError):
    """A model whose attention cannot be steered, or not at the site asked for."""


class AttachError(FocusRagError, RuntimeError):
    """Attaching to a model failed, or an attached intervention met a forward pass it cannot serve."""


class DocumentError(FocusRagError, ValueError):
    """A document or a folder of documents that cannot be read."""


class MissingDependencyError(FocusRagError, ImportError):
    """An optional package is needed and not installed; the message names it, or the extra that brings it."""


def first_problem(found: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong first, in one line: where, and what.

    Args:
        found: `ValidationError.errors()`.
    """
    where = ".".join(str(part) for part in found[0]["loc"])
    what = str(found[0]["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
