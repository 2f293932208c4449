"""Answers that follow a JSON Schema: which tokens may come next, worked out by llguidance (extra `[structured]`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from focus_rag.errors import InvalidInputError, MissingDependencyError
from focus_rag.held_schema import held_schema

logger = logging.getLogger("focus_rag")

# As `json.dumps` writes it: with white space left to the model, a poor one would write nothing else.
_FORM: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TOKENIZERS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class AnswerGrammar:
    """How far one answer has come in following a schema.

    What of it is held is said in `held_schema`.

    Attributes:
        is_lost: Whether the schema can no longer be followed, which takes one of extreme complexity.

    Args:
        schema: A JSON Schema.
        tokenizer: The model's fast tokenizer.

    Raises:
        InvalidInputError: It is no JSON Schema, uses what llguidance does not know, takes too much, or the tokenizer
            cannot be used for it.
        MissingDependencyError: llguidance is not installed.
    """

    def __init__(self, schema: Mapping[str, Any], tokenizer: Any) -> None:
        self._matcher = _llguidance().LLMatcher(_tokenizer(tokenizer), _grammar(schema), log_level=0)
        can_begin = any(self._matcher.compute_bitmask())  # some errors show only when the schema is put to use
        problem = self._matcher.get_error() or ("" if can_begin else "nothing follows it")
        if problem:
            raise InvalidInputError(f"Answers cannot be held to this JSON Schema: {_in_one_line(problem)}")
        self.is_lost = False
        self._tokenizer = tokenizer
        self._quote, self._closing = _single(tokenizer, '"'), _single(tokenizer, '}]",')
        self._in_string = self._is_escaped = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing can follow."""
        return bool(self._matcher.is_stopped()) and not self.is_lost

    def take(self, token: int) -> None:
        """Note a token of the answer, none that ends it."""
        self._matcher.consume_token(token)
        self._notice_loss()
        for character in self._tokenizer.decode([token]):
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = self._in_string
            elif character == '"':
                self._in_string = not self._in_string

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

    def closing(self, allowed: Tensor) -> Tensor:
        """Of the tokens that may come next, the one that ends what has been begun: a string, else an object, a list or
        one of their parts. All of them where none does.

        Args:
            allowed: What `allowed` gave.
        """
        if self._is_escaped:
            return allowed
        for token in self._quote if self._in_string else self._closing:
            if token < len(allowed) and allowed[token]:
                return torch.zeros_like(allowed).index_fill_(0, torch.tensor(token), True)
        return allowed

    def _notice_loss(self) -> None:
        if not self.is_lost and self._matcher.is_error():
            self.is_lost = True
            logger.warning(
                "An answer is cut off, for its JSON Schema can no longer be followed: %s",
                _in_one_line(self._matcher.get_error()),
            )


def _in_one_line(problem: str) -> str:
    """What llguidance says; of a pattern that cannot be used, the reason comes last."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    said = lines[0] if len(lines) < 2 or not lines[-1].startswith("error:") else f"{lines[0]} {lines[-1]}"
    return "it says nothing but itself" if said == "NoExtensionBias" else said[:300]


def _single(tokenizer: Any, characters: str) -> list[int]:
    """Tokens of single characters, as far as the vocabulary has them."""
    found = tokenizer.convert_tokens_to_ids(list(characters))
    return [token for token in found if token is not None and token != tokenizer.unk_token_id]


def _grammar(schema: Mapping[str, Any]) -> str:
    held = held_schema(schema)
    try:
        return str(_llguidance().LLMatcher.grammar_from_json_schema(held, overrides=_FORM))
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
            raise InvalidInputError(
                f"The model's tokenizer cannot be used for answers by a JSON Schema: {error!s:.300}"
            ) from error
    return known


@cache
def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "Answers by a JSON Schema need llguidance: pip install 'focus-rag[structured]'."
        ) from error
    return llguidance
