"""Answers that follow a JSON Schema: which tokens may come next, worked out by llguidance (extra `[structured]`)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from functools import cache
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from focus_rag.errors import InvalidInputError, MissingDependencyError

logger = logging.getLogger("focus_rag")

# As `json.dumps` writes it: with white space left to the model, a poor one would write nothing else.
_FORM: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_MOST_STATES: Final = 10_000
"""Largest product of what numbers have to be multiples of: an automaton with as many states is built for it, in seconds and gigabytes where it is large."""
_FORMATS: Final = frozenset({"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
"""The formats that llguidance holds an answer to. Any other is what the specification has it be, a remark."""
_REMARKS: Final = frozenset({"$comment", "$defs", "default", "definitions", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"})
_DATA: Final = frozenset({"const", "default", "enum", "examples"})
_BY_NAME: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose values are schemas by names of the author's own, which are no keywords."""
_TOKENIZERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class AnswerGrammar:
    """How far one answer has come in following a schema.

    Objects have no other properties than those named, unless the schema says otherwise or puts its objects together of several parts. `uniqueItems` and
    unknown formats are not held.

    Attributes:
        is_lost: Whether the schema can no longer be followed, which takes one of extreme complexity.

    Args:
        schema: A JSON Schema.
        tokenizer: The model's fast tokenizer.

    Raises:
        InvalidInputError: It is no JSON Schema, uses what llguidance does not know or what takes too much, or the tokenizer cannot be used for it.
        MissingDependencyError: llguidance is not installed.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Any) -> None:
        matcher = _llguidance().LLMatcher
        grammar = _grammar(schema)
        # Errors of the schema are told here, those that show only when it is put to use by the first mask.
        problem = matcher.validate_grammar(grammar, _tokenizer(tokenizer))
        if not problem:
            self._matcher = matcher(_tokenizer(tokenizer), grammar, log_level=0)
            problem = "nothing follows it" if not any(self._matcher.compute_bitmask()) else self._matcher.get_error()
        if problem:
            raise InvalidInputError(f"Answers cannot be held to this JSON Schema: {problem.splitlines()[0]:.300}")
        self.is_lost = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self.is_lost

    def take(self, token: int) -> None:
        """Note a token of the answer, none that ends it."""
        self._matcher.consume_token(token)
        self._notice_loss()

    def allowed(self, width: int, end_tokens: Iterable[int]) -> Tensor:
        """Which tokens may come next, `(vocabulary,)` of bool; none where the schema can no longer be followed.

        Args:
            width: Logits that the model has; those beyond the tokenizer's are no tokens.
            end_tokens: Ids that end an answer; they may come as soon as it is whole.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:width]
        self._notice_loss()
        may = torch.zeros(width, dtype=torch.bool)
        if not self.is_lost:
            may[: len(bits)] = torch.from_numpy(bits).bool()
            may[[token for token in end_tokens if token < width]] = bool(self._matcher.is_accepting())
        return may

    def _notice_loss(self) -> None:
        if not self.is_lost and self._matcher.is_error():
            self.is_lost = True
            logger.warning("An answer is cut off, for its JSON Schema can no longer be followed: %.300s", self._matcher.get_error().partition("\n")[0])


def _grammar(schema: Mapping[str, Any]) -> str:
    try:
        _refuse_large_multiples(schema)
        return str(_llguidance().LLMatcher.grammar_from_json_schema(_closed(schema, closes=not _puts_together(schema)), overrides=_FORM))
    except RecursionError as error:
        raise InvalidInputError("A JSON Schema must not be nested this deep, nor hold itself but by $ref.") from error
    except ValueError as error:
        raise InvalidInputError(f"A JSON Schema must hold plain JSON values: {error}") from error


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in a schema, itself the first."""
    if isinstance(value, Mapping):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _parts(one)


def _refuse_large_multiples(schema: Mapping[str, Any]) -> None:
    steps = [Fraction(str(part["multipleOf"])) for part in _parts(schema) if type(part.get("multipleOf")) in (int, float)]
    if math.prod(max(abs(step.numerator), step.denominator) for step in steps) > _MOST_STATES:
        raise InvalidInputError(f"A JSON Schema may ask for multiples of small numbers only: those in this one multiply to more than {_MOST_STATES}.")


def _puts_together(schema: Mapping[str, Any]) -> bool:
    """Whether any object may have properties that stand in several places of the schema, so that none of these can say that there are no others."""
    for part in _parts(schema):
        if "allOf" in part or ("$ref" in part and part.keys() - _REMARKS != {"$ref"}):
            return True
        if "properties" in part and not part.keys().isdisjoint({"anyOf", "oneOf", "if", "not", "dependentSchemas"}):
            return True
    return False


def _closed(value: Any, *, closes: bool) -> Any:
    """The schema without what cannot be held, and its objects closed: else a poor model never ends one."""
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


def _tokenizer(tokenizer: Any) -> Any:
    """Llguidance's view of a tokenizer, made once."""
    known = _TOKENIZERS.get(tokenizer)
    if known is None:
        from llguidance.hf import from_tokenizer

        try:
            known = _TOKENIZERS[tokenizer] = from_tokenizer(tokenizer)
        except Exception as error:  # it reads the tokenizer's own file, whose kinds are many
            raise InvalidInputError(f"The model's tokenizer cannot be used for answers by a JSON Schema: {error!s:.300}") from error
    return known


@cache
def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Answers by a JSON Schema need llguidance: pip install 'focus-rag[structured]'.") from error
    return llguidance
