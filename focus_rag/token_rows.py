"""Prompts of one batch as a model takes them: padded on the left, with the tokens that pad and end a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the model's own, and the tokenizer's end of sequence."""
    own = model.generation_config.eos_token_id
    own = own.tolist() if isinstance(own, Tensor) else own
    many = own if isinstance(own, (list, tuple)) else [own]
    return frozenset(int(token) for token in [*many, tokenizer.eos_token_id] if token is not None)


def pad_token(model: Any, tokenizer: Any) -> int:
    """Token that fills the left of short rows; the mask hides it."""
    candidates = (tokenizer.pad_token_id, *sorted(end_tokens(model, tokenizer)), 0)
    return int(next(token for token in candidates if token is not None))


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both `(batch, tokens)`."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, length - len(row) :] = torch.tensor(row)
        mask[index, length - len(row) :] = 1
    return ids.to(device), mask.to(device)
