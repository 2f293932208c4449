"""BEIR folders (Thakur et al. 2021, arXiv 2104.08663): a corpus, queries and relevance judgements."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.json_files import json_rows


def is_beir_folder(folder: Path) -> bool:
    """Whether a folder holds a corpus and queries."""
    return _file(folder, "corpus") is not None and _file(folder, "queries") is not None


def beir_rows(folder: Path, retrieve: int) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where a query or document stands, with the row or why it is left out.

    A row is a judged query with its relevant documents among the best of a BM25 search over the corpus. Accepted
    answers are the query's `answers` (its own or in `metadata`); a set without answers is judged by whether the answer
    names a relevant document's title.

    Raises:
        InvalidInputError: No judgements, or a corpus without documents.
    """
    from focus_rag.search.bm25 import BM25

    corpus: list[Mapping[str, Any]] = []
    for number, row in enumerate(json_rows(_required(folder, "corpus")), start=1):
        if isinstance(row, Mapping) and row.get("_id") is not None and isinstance(row.get("text"), str) and row["text"]:
            corpus.append(row)
        else:
            yield f"corpus row {number}", "a document without _id or text"
    if not corpus:
        raise InvalidInputError(f"{folder} has a corpus without documents.")
    place = {str(row["_id"]): index for index, row in enumerate(corpus)}
    judged = _judgements(folder)
    search = BM25([f"{row.get('title') or ''} {row['text']}" for row in corpus])
    for number, query in enumerate(json_rows(_required(folder, "queries")), start=1):
        if not isinstance(query, Mapping) or query.get("_id") is None or not isinstance(query.get("text"), str):
            yield f"query row {number}", "a query without _id or text"
            continue
        name = str(query["_id"])
        relevant = [place[one] for one in judged.get(name, ()) if one in place]
        if relevant:
            yield f"query {name}", _row(query, relevant, corpus, search.scores(query["text"]), retrieve)
        else:
            known = "no judged document is in the corpus" if name in judged else "no document is judged relevant"
            yield f"query {name}", known


def _row(
    query: Mapping[str, Any], relevant: list[int], corpus: list[Mapping[str, Any]], scores: Any, retrieve: int
) -> dict[str, Any] | str:
    ranked = [int(index) for index in (-scores).argsort(kind="stable")]
    others = [index for index in ranked if index not in relevant][: max(retrieve - len(relevant), 0)]
    shown = sorted([*relevant[:retrieve], *others], key=lambda index: -scores[index])
    metadata = query.get("metadata")
    answers = query.get("answers") or (metadata.get("answers") if isinstance(metadata, Mapping) else None)
    if not answers:
        answers = [corpus[index]["title"] for index in relevant if corpus[index].get("title")]
    if not answers:
        return "neither answers nor a relevant document with a title"
    return {
        "id": str(query["_id"]),
        "question": query["text"],
        "answers": answers,
        "score_kind": "bm25",
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
    try:
        with files[0].open(encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter="\t")
            names = next(rows, [])
            query, document, score = (names.index(name) for name in ("query-id", "corpus-id", "score"))
            for row in rows:
                if row and float(row[score]) > 0 and row[document] not in found[row[query]]:
                    found[row[query]].append(row[document])
    except (IndexError, ValueError, csv.Error) as error:
        raise InvalidInputError(
            f"{files[0]} is no list of judgements: lines of query-id, corpus-id and score with tabs between them and "
            f"these names in the first line were expected ({type(error).__name__}: {error})."
        ) from error
    return found


def _file(folder: Path, stem: str) -> Path | None:
    return next((file for end in (".jsonl", ".jsonl.gz") if (file := folder / f"{stem}{end}").is_file()), None)


def _required(folder: Path, stem: str) -> Path:
    file = _file(folder, stem)
    if file is None:
        raise InvalidInputError(f"{folder} has no {stem}.jsonl.")
    return file
