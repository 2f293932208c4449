"""Answers that follow a JSON Schema: which tokens may come next, worked out by llguidance (extra `[structured]`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from focus_rag.errors import InvalidInputError, MissingDependencyError

# As `json.dumps` writes it: with white space left to the model, a poor one would write nothing else.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TOKENIZERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def check_schema(schema: Mapping[str, Any], tokenizer: Any) -> None:
    """Refuse a schema that answers cannot be held to.

    Args:
        schema: A JSON Schema.
        tokenizer: The model's fast tokenizer.

    Raises:
        InvalidInputError: It is no JSON Schema, uses what llguidance does not know, or the tokenizer cannot be used for it.
        MissingDependencyError: llguidance is not installed.
    """
    problem = _llguidance().LLMatcher.validate_grammar(_grammar(schema), _tokenizer(tokenizer))
    if problem:
        raise InvalidInputError(f"Answers cannot be held to this JSON Schema: {problem.splitlines()[0]:.300}")


class AnswerGrammar:
    """How far one answer has come in following a schema.

    Args:
        schema: A JSON Schema, see `check_schema`.
        tokenizer: The model's fast tokenizer.
        end_tokens: Ids that end an answer; they may come as soon as it is whole.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Any, end_tokens: frozenset[int]) -> None:
        self._matcher = _llguidance().LLMatcher(_tokenizer(tokenizer), _grammar(schema), log_level=0)
        self._ends = sorted(end_tokens)

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether it can no longer be followed, which takes a schema of extreme complexity."""
        return bool(self._matcher.is_error())

    def take(self, token: int) -> None:
        """Note a token of the answer, none that ends it."""
        self._matcher.consume_token(token)

    def allowed(self, width: int) -> Tensor:
        """Which tokens may come next, `(vocabulary,)` of bool.

        Args:
            width: Logits that the model has; those beyond the tokenizer's are no tokens.
        """
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")[:width]
        may = torch.zeros(width, dtype=torch.bool)
        may[: len(bits)] = torch.from_numpy(bits).bool()
        may[self._ends] = bool(self._matcher.is_accepting())
        return may


_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_OF_MANY = ("anyOf", "oneOf", "prefixItems")


def _closed(schema: Any) -> Any:
    """The schema with objects that have no other properties than those named, unless it says otherwise: else a poor model never ends one."""
    if not isinstance(schema, Mapping):
        return schema
    closed = dict(schema)
    for name in _OF_NAMES:
        if isinstance(schema.get(name), Mapping):
            closed[name] = {key: _closed(one) for key, one in schema[name].items()}
    for name in _OF_MANY:
        if isinstance(schema.get(name), list):
            closed[name] = [_closed(one) for one in schema[name]]
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "properties" in schema and "allOf" not in schema:  # whose parts name properties of their own
        closed.setdefault("additionalProperties", False)
    return closed


def _grammar(schema: Mapping[str, Any]) -> str:
    try:
        return str(_llguidance().LLMatcher.grammar_from_json_schema(_closed(schema), overrides=_FORM))
    except ValueError as error:
        raise InvalidInputError(f"A JSON Schema must hold plain JSON values: {error}") from error


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
