"""A CSV of questions and answers over a folder of documents: passages come from this library's own search."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.datasets.rows import NO_GOLD
from focus_rag.examples import holds_answer

_QUESTION, _ANSWER = ("question", "query"), ("answer", "answers")


def table_rows(file: Path, documents: str | Path | None, retrieve: int) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where a row stands, with the row or why it is left out: the best passages of the documents, gold where they hold
    the answer.

    Several accepted answers stand in one field with `|` between them.

    Raises:
        InvalidInputError: No documents, no columns `question` and `answer`, or no CSV in UTF-8.
    """
    if documents is None:
        raise InvalidInputError(f"{file} has questions without passages: say which documents they are about (--docs).")
    from focus_rag.search.passage_index import PassageIndex

    index = PassageIndex.from_folder(Path(documents))
    for reason in index.left_out:
        yield "the documents", reason
    for number, (question, answers) in enumerate(_questions(file), start=1):
        found = index.search(question, retrieve) if question else []
        passages = [
            {
                "text": one.text,
                "title": one.title,
                "score": one.score,
                "id": one.id,
                "is_gold": holds_answer(one.content, answers),
            }
            for one in found
        ]
        row = {
            "id": f"{file.stem}-{number}",
            "question": question,
            "answers": answers,
            "score_kind": "cosine",
            "passages": passages,
        }
        unfound = question and answers and not any(one["is_gold"] for one in passages)
        yield f"row {number}", NO_GOLD if unfound else row


def _questions(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Question and accepted answers of every row."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
            names = {name.strip().lower(): name for name in reader.fieldnames or () if name}
            question = next((names[name] for name in _QUESTION if name in names), None)
            answer = next((names[name] for name in _ANSWER if name in names), None)
            if question is None or answer is None:
                raise InvalidInputError(
                    f"{file} needs the columns question and answer; it has {', '.join(names) or 'none'}."
                )
            for row in reader:
                answers = [part.strip() for part in (row[answer] or "").split("|") if part.strip()]
                yield (row[question] or "").strip(), answers
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file} cannot be read as CSV in UTF-8 ({error}).") from error
