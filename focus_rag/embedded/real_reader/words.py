"""Words in token ids: where they begin, what kind of answer they make, and questions with some of them left out or
moved.
"""

from __future__ import annotations

import random
from typing import Any


class Words:
    """What single tokens are: where words begin, and what kind of answer a sequence is."""

    def __init__(self, tokenizer: Any) -> None:
        tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._begins = [token.startswith("\u0120") for token in tokens]
        plain = [token.removeprefix("\u0120") for token in tokens]
        self._is_mark = [not any(one.isalnum() for one in token) for token in plain]
        self._has_digit = [any(one.isdigit() for one in token) for token in plain]
        self._is_capital = [token[:1].isupper() for token in plain]

    def kind(self, tokens: list[int]) -> str:
        """`number`, `name` or `phrase`."""
        if any(self._has_digit[token] for token in tokens):
            return "number"
        return "name" if tokens and self._is_capital[tokens[0]] else "phrase"

    def split(self, tokens: list[int]) -> list[list[int]]:
        """Tokens by word, without punctuation."""
        words: list[list[int]] = []
        for token in tokens:
            if self._is_mark[token]:
                continue
            if self._begins[token] or not words:
                words.append([])
            words[-1].append(token)
        return words

    def thinned(self, rng: random.Random, tokens: list[int], share: float) -> list[int]:
        """Without a share of the words, drawn anew; all of them where none would be left."""
        kept = [word for word in self.split(tokens) if rng.random() >= share]
        return [token for word in kept for token in word] or tokens

    def shaken(self, rng: random.Random, tokens: list[int]) -> list[int]:
        """The words in nearly their order: each moves by a few places at most."""
        words = self.split(tokens)
        places = sorted(range(len(words)), key=lambda place: place + rng.uniform(0.0, 3.0))
        return [token for place in places for token in words[place]]


def replaced(tokens: list[int], old: list[int], new: list[int]) -> list[int]:
    """Tokens with every occurrence of one sequence exchanged for another."""
    found, place = [], 0
    while place < len(tokens):
        if tokens[place : place + len(old)] == old:
            found += new
            place += len(old)
        else:
            found.append(tokens[place])
            place += 1
    return found
