"""A CSV of questions and answers over a folder of documents: passages come from this library's own search."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.examples import holds_answer

_QUESTION, _ANSWER = ("question", "query"), ("answer", "answers")


def table_rows(file: Path, documents: str | Path | None, retrieve: int) -> Iterator[dict[str, Any]]:
    """One row for each question: the best passages of the documents, gold where they hold the answer.

    Several accepted answers stand in one field with `|` between them.

    Raises:
        InvalidInputError: No documents, or no columns `question` and `answer`.
    """
    if documents is None:
        raise InvalidInputError(f"{file} has questions without passages: say which documents they are about (--docs).")
    from focus_rag.retrieval import PassageIndex

    index = PassageIndex.from_folder(Path(documents))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
        names = {name.strip().lower(): name for name in reader.fieldnames or ()}
        question = next((names[name] for name in _QUESTION if name in names), None)
        answer = next((names[name] for name in _ANSWER if name in names), None)
        if question is None or answer is None:
            raise InvalidInputError(
                f"{file} needs the columns question and answer; it has {', '.join(names) or 'none'}."
            )
        for number, row in enumerate(reader, start=1):
            answers = [part.strip() for part in (row[answer] or "").split("|") if part.strip()]
            text = (row[question] or "").strip()
            found = index.search(text, retrieve) if text else []
            yield {
                "id": f"{file.stem}-{number}",
                "question": text,
                "answers": answers,
                "passages": [
                    {
                        "text": one.text,
                        "title": one.title,
                        "score": one.score,
                        "id": one.id,
                        "is_gold": holds_answer(one.content, answers),
                    }
                    for one in found
                ],
            }
