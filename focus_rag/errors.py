"""Every error this library raises on purpose: what happened, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final


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


_SHOULD_BE: Final = "Input should be "
_TYPES: Final = frozenset({"str", "int", "float", "bool", "none", "dict", "list", "tuple"})


def first_problem(found: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found wrong first, in one line: where, and what.

    Of a value that may be one of several things, what is said is what keeps it from the one that it is nearest to;
    where it is near to none, what it may be.

    Args:
        found: `ValidationError.errors()`.
    """
    field = _path(found[0]["loc"])
    of_field = [problem for problem in found if _path(problem["loc"])[: len(field)] == field]
    nearest = [problem for problem in of_field if len(_path(problem["loc"])) > len(field) or not _is_other(problem)]
    if len(of_field) == 1 or nearest:
        problem = (nearest or of_field)[0]
        where, what = _path(problem["loc"]), str(problem["msg"]).removeprefix("Value error, ")
    else:
        said = dict.fromkeys(str(problem["msg"]).removeprefix(_SHOULD_BE) for problem in of_field)
        where, what = field, _SHOULD_BE + " or ".join(said)
    what = re.sub(r"a valid dictionary or (instance of \w+|object to extract fields from)", "an object", what)
    return f"{'.'.join(map(str, where))}: {what}" if where else what


def _path(place: Sequence[int | str]) -> tuple[int | str, ...]:
    """A place without what pydantic calls the branches of a union, which are no fields."""
    return tuple(
        part
        for index, part in enumerate(place)
        if index == 0 or isinstance(part, int) or (part.isidentifier() and part not in _TYPES and part[0].islower())
    )


def _is_other(problem: Mapping[str, Any]) -> bool:
    """Whether a value is something else altogether, and not merely wrong."""
    return str(problem["type"]).endswith(("_type", "_parsing")) or problem["type"] in ("literal_error", "enum")
