"""What of a JSON Schema an answer is held to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

from focus_rag.errors import InvalidInputError

_MOST_STATES: Final = 10_000
"""Largest product of what numbers have to be multiples of: an automaton with as many states is built for it."""
_FORMATS: Final = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
"""The formats that llguidance holds an answer to. Any other is what the specification has it be, a remark."""
_REMARKS: Final = frozenset(
    {
        "$comment",
        "$defs",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_DATA: Final = frozenset({"const", "default", "enum", "examples"})
_BY_NAME: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values are schemas by names of the author's own, which are no keywords."""


def held_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that llguidance gets.

    Objects have no other properties than those named, unless the schema says otherwise or puts its objects together of
    several parts: else a poor model never ends one. `uniqueItems` and formats that llguidance does not know are left
    out.

    Args:
        schema: A JSON Schema.

    Raises:
        InvalidInputError: It is nested too deep, holds itself, or asks for multiples of large numbers, for which
            automata of seconds and gigabytes would be built.
    """
    try:
        _refuse_large_multiples(schema)
        held: dict[str, Any] = _closed(schema, closes=not _puts_together(schema))
    except RecursionError as error:
        raise InvalidInputError("A JSON Schema must not be nested this deep, nor hold itself but by $ref.") from error
    return held


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a schema, itself the first."""
    if isinstance(value, Mapping):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _parts(one)


def _refuse_large_multiples(schema: Mapping[str, Any]) -> None:
    numbers = [part["multipleOf"] for part in _parts(schema) if type(part.get("multipleOf")) in (int, float)]
    steps = [Fraction(str(number)) for number in numbers if type(number) is int or math.isfinite(number)]
    if math.prod(max(abs(step.numerator), step.denominator) for step in steps) > _MOST_STATES:
        raise InvalidInputError(
            "A JSON Schema may ask for multiples of small numbers only: those in this one multiply to more than "
            f"{_MOST_STATES}."
        )


def _puts_together(schema: Mapping[str, Any]) -> bool:
    """Whether any object may have properties that stand in several places of the schema, so that none of these can say
    that there are no others.
    """
    for part in _parts(schema):
        if "allOf" in part or ("$ref" in part and part.keys() - _REMARKS != {"$ref"}):
            return True
        if "properties" in part and not part.keys().isdisjoint({"anyOf", "oneOf", "if", "not", "dependentSchemas"}):
            return True
    return False


def _closed(value: Any, *, closes: bool) -> Any:
    """A part of a schema without what cannot be held, and its objects closed."""
    if isinstance(value, list):
        return [_closed(one, closes=closes) for one in value]
    if not isinstance(value, Mapping):
        return value
    schema = {name: _closed_part(name, one, closes) for name, one in value.items()}
    if type(schema.get("uniqueItems")) is bool:
        del schema["uniqueItems"]
    if isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS:
        del schema["format"]
    named, required = schema.get("properties"), schema.get("required", [])
    if closes and isinstance(named, Mapping) and isinstance(required, list) and named.keys() >= set(map(str, required)):
        schema.setdefault("additionalProperties", False)
    return schema


def _closed_part(keyword: str, value: Any, closes: bool) -> Any:
    if keyword in _DATA:
        return value
    if keyword in _BY_NAME and isinstance(value, Mapping):
        return {name: _closed(one, closes=closes) for name, one in value.items()}
    return _closed(value, closes=closes)
