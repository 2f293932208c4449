"""Sequences of tokens with a loss weight for each, and the conversations they are made from.

A conversation is built as a list of (text, weight) pieces, so that the weighted pieces are exactly what the model has
to produce: answers and their end token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from focus_rag.prompt_layout import PromptLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Weights of tokens of an answer: finding where the value begins is the task, the rest of the value is copying, and what
# leads up to it follows from the question.
FOUND = 4.0
LEAD = 0.4
# The reader is trained in the layout that the library asks in.
LAYOUT = PromptLayout()
Span = tuple[int, int]


@dataclass
class Row:
    """One training sequence.

    Attributes:
        tokens: Token ids.
        weights: Loss weight of predicting each token (the first is never predicted).
        first_answer: Start and end of the first answer in `tokens`, for the running accuracy; None if there is none.
        source: Kind of row, for the metrics.
    """

    tokens: list[int]
    weights: list[float]
    first_answer: Span | None = None
    source: str = "question"


def cut_by_length(rows: list[Row], most: int) -> list[list[Row]]:
    """Batches of rows of similar length, the shortest first, each of at most `most` tokens with its padding."""
    batches: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if batches[-1] and len(row.tokens) * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(row)
    return batches


@dataclass
class Conversation:
    """Pieces of text with their loss weights, in the layout of the chat template."""

    pieces: list[tuple[str, float, float]] = field(default_factory=list)
    """Text, the weight of its tokens, and the weight of the first of them."""

    def user(self, text: str) -> None:
        """What the user says."""
        self.pieces += [("<|user|>", 0.0, 0.0), (text, 0.0, 0.0), ("<|end|>", 0.0, 0.0)]

    def assistant(self, text: str, weight: float = 1.0, *, lead: str = "") -> None:
        """What the model is to say: `lead`, which follows from the question alone, and then what has to be found."""
        self.pieces.append(("<|assistant|>", 0.0, 0.0))
        if lead:
            self.pieces += [(lead, LEAD * weight, LEAD * weight), (text, weight, FOUND * weight)]
        else:
            self.pieces.append((text, weight, weight))
        self.pieces.append(("<|end|>", weight, weight))

    def row(self, tokenizer: PreTrainedTokenizerFast, source: str = "question") -> Row:
        backend = tokenizer.backend_tokenizer
        texts = [text for text, _, _ in self.pieces]
        encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
        tokens, weights = [tokenizer.bos_token_id], [0.0]
        begins: int | None = None
        first: Span | None = None
        for encoding, (_, weight, beginning) in zip(encoded, self.pieces, strict=True):
            ends = encoding.ids[0] == tokenizer.eos_token_id
            tokens += encoding.ids
            weights += [beginning] + [weight] * (len(encoding.ids) - 1)
            if encoding.ids[0] == assistant:
                begins = begins or len(tokens)
            elif ends and begins and first is None:
                first = (begins, len(tokens))
        return Row(tokens, weights, first, source)
