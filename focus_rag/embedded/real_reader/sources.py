"""Reading the training files: paragraphs and questions, deduplicated, with the held-out part marked.

Only training files are read. Rows that say they are of another split are refused, and questions or gold passages that
stand in an evaluation file (`leave_out`) are left out and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from focus_rag.embedded.real_text import is_held_out
from focus_rag.errors import InvalidInputError
from focus_rag.examples import normalised
from focus_rag.json_files import json_rows


@dataclass(frozen=True)
class Text:
    """One paragraph.

    Attributes:
        title: Of its article; may be empty.
        text: White space joined.
        held_out: Whether its article is kept out of the training.
    """

    title: str
    text: str
    held_out: bool


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        question: White space joined.
        answer: As it stands in the gold paragraph.
        answers: All accepted answers.
        gold: Index of the paragraph that answers it.
        hard: Indices of paragraphs that a retriever ranks high and that hold no answer.
        source: Which file it is from, by position on the command line.
        held_out: Whether it is kept out of the training.
    """

    question: str
    answer: str
    answers: tuple[str, ...]
    gold: int
    hard: tuple[int, ...]
    source: int
    held_out: bool


@dataclass
class Sources:
    """Everything read so far.

    Attributes:
        texts: Paragraphs in the order they came; those of one article follow each other.
        questions: Questions.
        names: Name of each source of questions.
        left_out: How many rows were left out, by reason.
    """

    texts: list[Text] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    _number: dict[str, int | None] = field(default_factory=dict)
    _banned_questions: set[str] = field(default_factory=set)
    _banned_texts: set[str] = field(default_factory=set)

    def leave_out(self, file: Path) -> None:
        """Remember the questions and gold passages of an evaluation file; call before anything is read.

        It holds articles in SQuAD format, or rows with a question and `passages`, or `ctxs` as of lost in the middle.

        Raises:
            InvalidInputError: The file cannot be read, a row of it is neither, or there is no question or no gold
                passage in it.
        """
        questions: set[str] = set()
        golds: set[str] = set()
        for number, row in enumerate(json_rows(file), start=1):
            with _expecting(f"Row {number} of {file} is neither a question with passages nor an article"):
                asked, held = _evaluated(row)
                questions.update(map(normalised, asked))
                golds.update(map(normalised, held))
        if not questions or not golds:
            raise InvalidInputError(
                f"{file} holds {len(questions)} questions and {len(golds)} gold passages to leave out: give an "
                "evaluation file that has both, in SQuAD format or with its gold passages marked by `is_gold`."
            )
        self._banned_questions |= questions
        self._banned_texts |= golds

    def read_articles(self, file: Path) -> None:
        """Read a file in SQuAD format: every paragraph, and the questions on it.

        Raises:
            InvalidInputError: The file does not follow the format.
        """
        self.names.append(file.name)
        with _expecting(f"{file} is not in SQuAD format"):
            for article in json_rows(file):
                for paragraph in article["paragraphs"]:  # type: ignore[index]
                    gold = self._text(article["title"], paragraph["context"])  # type: ignore[index]
                    for asked in paragraph["qas"]:
                        answers = _answer_texts(asked["answers"])
                        self._question(asked["question"], answers, gold, (), article["title"])  # type: ignore[index]

    def read_questions(self, file: Path) -> None:
        """Read questions with retrieved passages, one JSON object per line, each saying `"split": "train"`.

        Raises:
            InvalidInputError: A row is of another split, or does not follow the schema.
        """
        self.names.append(file.name)
        for number, row in enumerate(json_rows(file), start=1):
            if not isinstance(row, dict) or row.get("split") != "train":
                split = row.get("split") if isinstance(row, dict) else None
                raise InvalidInputError(
                    f'Row {number} of {file} says split {split!r}: only rows that say "train" are trained on. '
                    "Evaluation files belong to --leave-out."
                )
            with _expecting(f"Row {number} of {file} is no question with passages"):
                self._retrieved(row)

    def _retrieved(self, row: dict[str, Any]) -> None:
        numbers = [self._text(one.get("title") or "", one["text"]) for one in row["passages"]]
        pairs = list(zip(row["passages"], numbers, strict=True))
        golds = [number for one, number in pairs if one["is_gold"] and number is not None]
        hard = [
            number for one, number in pairs if not one["is_gold"] and not one.get("has_answer") and number is not None
        ]
        answers = _answer_texts(row["answers"])
        self._question(row["question"], answers, golds[0] if golds else None, hard, row["question"])

    def _text(self, title: str, text: str) -> int | None:
        """The index of a paragraph, new or known; None where it is one of an evaluation file."""
        text = " ".join(text.split())
        if text not in self._number:
            if banned := normalised(text) in self._banned_texts:
                self.left_out["paragraph of an evaluation file"] += 1
            else:
                self.texts.append(Text(" ".join(title.split()), text, is_held_out(title or text)))
            self._number[text] = None if banned else len(self.texts) - 1
        return self._number[text]

    def _question(
        self, question: str, answers: Sequence[str], gold: int | None, hard: Iterable[int], split_by: str
    ) -> None:
        question = " ".join(question.split())
        if normalised(question) in self._banned_questions:
            self.left_out["question of an evaluation file"] += 1
        elif gold is None:
            self.left_out["question without a gold paragraph that may be used"] += 1
        elif not question or not (written := _as_written(answers, self.texts[gold].text)):
            self.left_out["question whose answer is not in its paragraph"] += 1
        else:
            held_out = is_held_out(split_by) or self.texts[gold].held_out
            kept = tuple(number for number in hard if held_out or not self.texts[number].held_out)
            source = len(self.names) - 1
            self.questions.append(Asked(question, written, tuple(answers), gold, kept, source, held_out))


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer stands in a text, letter case aside."""
    text = text.lower()
    return any(answer.lower() in text for answer in answers)


@contextmanager
def _expecting(otherwise: str) -> Iterator[None]:
    """Refuse what is laid out in another way, with what is wrong then."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{otherwise} ({type(error).__name__}: {error}).") from error


_GOLD_MARKS = ("is_gold", "isgold", "has_answer", "hasanswer")


def _evaluated(row: Any) -> tuple[list[str], list[str]]:
    """The questions and gold passages of one row of an evaluation file."""
    if "paragraphs" in row:
        asked = [one["question"] for paragraph in row["paragraphs"] for one in paragraph["qas"]]
        return asked, [paragraph["context"] for paragraph in row["paragraphs"]]
    shown = row.get("passages", row.get("ctxs", []))
    mark = next((name for name in _GOLD_MARKS if any(name in one for one in shown)), None)
    golds = [one["text"] for one in shown if str(one.get(mark)).lower() in ("true", "1", "1.0")]
    return [row["question"]], golds


def _answer_texts(answers: Any) -> list[str]:
    if not isinstance(answers, list):
        raise TypeError(f"answers are a list of texts, not {answers!r}")
    return [one if isinstance(one, str) else one["text"] for one in answers]


def _as_written(answers: Sequence[str], text: str) -> str | None:
    """The first answer that a text holds, in the text's own letters."""
    for answer in answers:
        wanted = " ".join(answer.split())
        if wanted and (found := re.search(re.escape(wanted), text, re.IGNORECASE)):
            return found.group()
    return None
