"""Sequences of tokens with a loss weight for each, and the conversations they are made from.

A conversation is built as a list of (text, weight) pieces, so that the weighted pieces are exactly what the model has
to produce: answers and their end token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from focus_rag.prompt_layout import PromptLayout
from focus_rag.prompting import in_order, token_span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Weights of tokens of an answer: finding where the value begins is the task, the rest of the value is copying, and what
# leads up to it follows from the question.
FOUND = 4.0
LEAD = 0.4
# The reader is trained in the layout that the library asks in.
LAYOUT = PromptLayout()
Span = tuple[int, int]


@dataclass(frozen=True)
class Marks:
    """Where the passages of a row's first question stand, as `[start, end)` of characters or of tokens.

    Attributes:
        passages: All passages, the labels between them included.
        gold: The passage that answers the question.
        told: In it, from where the value begins to the end of its sentence.
    """

    passages: Span
    gold: Span
    told: Span


@dataclass
class Row:
    """One training sequence.

    Attributes:
        tokens: Token ids.
        weights: Loss weight of predicting each token (the first is never predicted).
        first_answer: Start and end of the first answer in `tokens`, for the running accuracy; None if there is none.
        source: Kind of row, for the metrics.
        marks: Tokens of the passages, where a passage answers the first question and they are to be learnt from; else
            None.
    """

    tokens: list[int]
    weights: list[float]
    first_answer: Span | None = None
    source: str = "question"
    marks: Marks | None = None


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
    marks: Marks | None = None
    """Characters of the first user message."""

    def user(self, text: str, marks: Marks | None = None) -> None:
        """What the user says; `marks` may come with the first message alone."""
        self.pieces += [("<|user|>", 0.0, 0.0), (text, 0.0, 0.0), ("<|end|>", 0.0, 0.0)]
        self.marks = self.marks or marks

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
        encoded = (backend.encode_batch if self.marks else backend.encode_batch_fast)(texts, add_special_tokens=False)
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
        marks = self.marks and _in_tokens(self.marks, encoded[1].offsets, before=2)
        return Row(tokens, weights, first, source, marks)


def _in_tokens(marks: Marks, offsets: list[Span], before: int) -> Marks | None:
    """Marks of a text as tokens of its row, in which `before` tokens stand ahead of the text; None if one of them has
    no token.
    """
    ordered = in_order(offsets)
    found = [token_span(ordered, span) for span in (marks.passages, marks.gold, marks.told)]
    spans = [(span[0] + before, span[1] + before) for span in found if span is not None]
    return Marks(*spans) if len(spans) == len(found) else None


def marks_of(content: str, passages: list[Span], gold: int, value: str) -> Marks | None:
    """Marks of a user message, in characters; None where the gold passage does not spell the value.

    Args:
        content: The message.
        passages: Where its passages stand in it, in order.
        gold: Index of the one that answers.
        value: What it tells.
    """
    begins, ends = passages[gold]
    told = content.lower().find(value.lower(), begins, ends)
    if told < 0:
        return None
    stop = content.find(". ", told + len(value), ends)
    return Marks((passages[0][0], passages[-1][1]), (begins, ends), (told, stop + 1 if stop >= 0 else ends))
