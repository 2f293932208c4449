"""Sequences of tokens with a loss weight for each, and the conversations they are made from.

A conversation is built as a list of (text, weight) pieces, so that the weighted pieces are exactly what the model has
to produce: answers and their end token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOT_STATED = "not stated"
# Weights of tokens of an answer: finding where the value begins is the task, the rest of the value is copying, and what leads up
# to it follows from the question.
FOUND = 4.0
LEAD = 0.4
INSTRUCTION = "Answer the question from the passages. If they do not hold the answer, say: not stated."


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
        marks: Tokens of the passages, where a passage answers the first question and they are to be learnt from; else None.
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


def _in_tokens(marks: Marks, offsets: list[Span], before: int) -> Marks:
    """Marks of a text as tokens of its row, in which `before` tokens stand ahead of the text."""

    def tokens(span: Span) -> Span:
        inside = [i for i, (start, end) in enumerate(offsets) if end > span[0] and start < span[1]]
        return inside[0] + before, inside[-1] + before + 1

    return Marks(tokens(marks.passages), tokens(marks.gold), tokens(marks.told))


def question_content(question: str, passages: list[str]) -> str:
    """The user message: the question before and after the numbered passages."""
    if not passages:
        return question
    numbered = "\n\n".join(f"[{i}] {text}" for i, text in enumerate(passages, start=1))
    return f"{INSTRUCTION}\nQuestion: {question}\n\n{numbered}\n\nQuestion: {question}"


def marks_of(content: str, passages: list[str], gold: int, value: str) -> Marks | None:
    """Characters of the passages in a message of `question_content`; None where the gold passage does not spell the value.

    Args:
        content: The message.
        passages: Its passages in order.
        gold: Index of the one that answers.
        value: What it tells.
    """
    starts: list[int] = []
    position = 0
    for i, text in enumerate(passages, start=1):
        position = content.index(f"\n\n[{i}] {text}", position) + len(f"\n\n[{i}] ")
        starts.append(position)
        position += len(text)
    begins, ends = starts[gold], starts[gold] + len(passages[gold])
    told = content.lower().find(value.lower(), begins, ends)
    if told < 0:
        return None
    stop = content.find(". ", told + len(value), ends)
    return Marks((starts[0], position), (begins, ends), (told, stop + 1 if stop >= 0 else ends))
