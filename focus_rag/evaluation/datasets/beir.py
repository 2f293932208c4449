"""BEIR folders (Thakur et al. 2021, arXiv 2104.08663): a corpus, queries and relevance judgements."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.datasets.jsonl import json_rows


def is_beir_folder(folder: Path) -> bool:
    """Whether a folder holds a corpus and queries."""
    return _file(folder, "corpus") is not None and _file(folder, "queries") is not None


def beir_rows(folder: Path, retrieve: int) -> Iterator[dict[str, Any]]:
    """One row for each judged query: its relevant documents among the best of a BM25 search over the corpus.

    Accepted answers are the query's `answers` (its own or in `metadata`); a set without answers is judged by whether the
    answer names a relevant document's title.

    Raises:
        InvalidInputError: No judgements, or a corpus without documents.
    """
    from focus_rag.embedded.retrieval import BM25

    corpus = [row for row in json_rows(_required(folder, "corpus")) if isinstance(row, Mapping) and row.get("text")]
    if not corpus:
        raise InvalidInputError(f"{folder} has a corpus without documents.")
    place = {str(row["_id"]): index for index, row in enumerate(corpus)}
    judged = _judgements(folder)
    search = BM25([f"{row.get('title') or ''} {row['text']}" for row in corpus])
    for query in json_rows(_required(folder, "queries")):
        if not isinstance(query, Mapping):
            continue
        relevant = [place[one] for one in judged.get(str(query.get("_id")), ()) if one in place]
        if not relevant:
            continue
        scores = search.scores(str(query["text"]))
        ranked = [int(index) for index in (-scores).argsort(kind="stable")]
        others = [index for index in ranked if index not in relevant][: max(retrieve - len(relevant), 0)]
        shown = sorted([*relevant[:retrieve], *others], key=lambda index: -scores[index])
        answers = query.get("answers") or (query.get("metadata") or {}).get("answers")
        if not answers:
            answers = [corpus[index].get("title") for index in relevant if corpus[index].get("title")]
        yield {
            "id": str(query["_id"]),
            "question": str(query["text"]),
            "answers": answers,
            "passages": [
                {
                    "id": str(corpus[index]["_id"]),
                    "title": corpus[index].get("title"),
                    "text": corpus[index]["text"],
                    "score": float(scores[index]),
                    "is_gold": index in relevant,
                }
                for index in shown
            ],
        }


def _judgements(folder: Path) -> dict[str, list[str]]:
    """Relevant document ids by query: the test judgements, else whatever there is."""
    files = sorted((folder / "qrels").glob("*.tsv"), key=lambda file: (file.stem != "test", file.stem))
    if not files:
        raise InvalidInputError(f"{folder} has no relevance judgements: qrels/test.tsv was expected.")
    found: dict[str, list[str]] = defaultdict(list)
    with files[0].open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if float(row.get("score") or 0) > 0:
                found[str(row["query-id"])].append(str(row["corpus-id"]))
    return found


def _file(folder: Path, stem: str) -> Path | None:
    return next((file for end in (".jsonl", ".jsonl.gz") if (file := folder / f"{stem}{end}").is_file()), None)


def _required(folder: Path, stem: str) -> Path:
    file = _file(folder, stem)
    if file is None:
        raise InvalidInputError(f"{folder} has no {stem}.jsonl.")
    return file
