"""Labelled examples as teacher-forced sequences: prompt and response in one row, and where everything stands in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from focus_rag.built_prompt import TokenSpan
from focus_rag.errors import InvalidInputError, PromptTooLongError
from focus_rag.examples import Example
from focus_rag.probing import input_device
from focus_rag.prompting import PromptBuilder

Rows = Literal["found", "all"]
"""Which response tokens count: those that stand in a gold passage and not in the question, which are what the model has
to find, or all. Where none is of the first kind, all count.
"""


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """One example as the model reads it, with its response already written.

    Attributes:
        input_ids: Prompt and response.
        prompt_tokens: Length of the prompt.
        rows: Query positions that predict the response tokens that count; each is one before its token.
        gold: Token spans of the gold passages.
        others: Token spans of the other passages.
    """

    input_ids: tuple[int, ...]
    prompt_tokens: int
    rows: tuple[int, ...]
    gold: tuple[TokenSpan, ...]
    others: tuple[TokenSpan, ...]

    @property
    def passages_at(self) -> int:
        """Position of the first token of the first passage."""
        return min(start for start, _ in (*self.gold, *self.others))


def teacher_forced(
    builder: PromptBuilder, example: Example, response: str, *, max_tokens: int, max_rows: int, rows: Rows = "all"
) -> TeacherForced | None:
    """Lay out an example with a response.

    Args:
        builder: Builds prompts for the model's tokenizer.
        example: The example.
        response: What the model is taken to answer.
        max_tokens: Tokens the sequence may have. Passages that are not gold are left out, the last first, until it
            fits.
        max_rows: The response is cut after so many tokens.
        rows: Which of them count.

    Returns:
        None where it does not fit, or where no gold passage or no response is left.
    """
    ids = builder.tokenizer(response.strip(), add_special_tokens=False)["input_ids"][:max_rows]
    others = [index for index in range(len(example.passages)) if index not in example.gold]
    try:
        built = builder.from_question(
            example.question,
            example.passages,
            max_tokens=max_tokens - len(ids),
            drop_order=[*reversed(others), *sorted(example.gold, reverse=True)],
        )
    except PromptTooLongError:
        return None
    gold = [span for index in sorted(example.gold) if (span := built.spans[index]) is not None]
    if not gold or not ids:
        return None
    start = len(built.input_ids)
    counted: Sequence[int] = range(len(ids))
    if rows == "found":
        in_gold = {token for first, last in gold for token in built.input_ids[first:last]}
        asked = set(builder.tokenizer(example.question, add_special_tokens=False)["input_ids"])
        counted = [place for place, token in enumerate(ids) if token in in_gold - asked] or counted
    return TeacherForced(
        input_ids=(*built.input_ids, *ids),
        prompt_tokens=start,
        rows=tuple(start - 1 + place for place in counted),
        gold=tuple(gold),
        others=tuple(span for index in others if (span := built.spans[index]) is not None),
    )


def teacher_forced_all(
    builder: PromptBuilder,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    max_rows: int,
    rows: Rows = "all",
    responses: Sequence[str] | None = None,
) -> list[TeacherForced]:
    """Lay out many examples; those that do not fit are left out.

    Args:
        builder: Builds prompts for the model's tokenizer.
        examples: The examples.
        max_tokens: Tokens a sequence may have.
        max_rows: Responses are cut after so many tokens.
        rows: Which response tokens count.
        responses: One per example; by default its first answer.

    Raises:
        InvalidInputError: Not one of them fits.
    """
    texts = [example.answers[0] for example in examples] if responses is None else responses
    laid_out = [
        teacher_forced(builder, example, text, max_tokens=max_tokens, max_rows=max_rows, rows=rows)
        for example, text in zip(examples, texts, strict=True)
    ]
    found = [one for one in laid_out if one is not None]
    if examples and not found:
        raise InvalidInputError(
            f"None of {len(examples)} examples fits into {max_tokens} tokens with its gold passage; use shorter "
            "passages or a model with a larger window."
        )
    return found


@torch.no_grad()
def run_decoder(model: nn.Module, input_ids: Sequence[int]) -> None:
    """One forward pass up to the last hidden states; the vocabulary projection, not needed here, is left out."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    decoder(input_ids=torch.tensor([list(input_ids)], device=input_device(model)), use_cache=False)
