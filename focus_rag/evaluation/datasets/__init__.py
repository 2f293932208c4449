"""Reading question sets: one module for each file format, and `load_cases`, which tells them apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case, FileCases, case_of
from focus_rag.evaluation.datasets.alce import alce_row
from focus_rag.evaluation.datasets.beir import beir_rows, is_beir_folder
from focus_rag.evaluation.datasets.helmet import helmet_row, reranking_row
from focus_rag.evaluation.datasets.lost_in_the_middle import key_value_row, lost_in_the_middle_row
from focus_rag.evaluation.datasets.rows import RowLeftOut
from focus_rag.evaluation.datasets.table import table_rows
from focus_rag.json_files import json_rows
from focus_rag.score_order import ScoreKind

__all__ = ["load_cases", "normal_row"]

# In order: the first whose keys are all there reads the row. ALCE's `docs` and re-ranking's `query` are unmistakable;
# lost-in-the-middle and HELMET share `ctxs` and differ in how gold is marked.
_READERS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any]], Mapping[str, Any]]], ...] = (
    (frozenset({"question", "passages"}), lambda row: row),
    (frozenset({"question", "docs"}), alce_row),
    (frozenset({"query", "ctxs"}), reranking_row),
    (frozenset({"question", "answers", "ctxs", "nq_annotated_gold"}), lost_in_the_middle_row),
    (frozenset({"question", "ctxs"}), helmet_row),
    (frozenset({"ordered_kv_records", "key", "value"}), key_value_row),
)


def load_cases(
    path: str | Path, *, documents: str | Path | None = None, retrieve: int = 20, score_kind: ScoreKind | None = None
) -> FileCases:
    """Read cases from a file or folder of any known format.

    Known: this library's JSONL; lost-in-the-middle (questions, key-value pairs); HELMET's question answering and
    re-ranking rows; ALCE; a BEIR folder (`corpus.jsonl`, `queries.jsonl`, `qrels/`); a CSV of question and answer with
    `documents`; a folder of such files. Which format it is, the rows tell.

    Args:
        path: File or folder.
        documents: Folder of documents that the questions of a CSV are about.
        retrieve: Passages to retrieve where the format brings none (BEIR, CSV).
        score_kind: What the scores are, of rows which do not say it.

    Raises:
        InvalidInputError: Nothing there, or not one usable row; the message counts the reasons.
    """
    place = Path(path)
    if not place.exists():
        raise InvalidInputError(f"No questions at {place}: a file or folder was expected.")
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    cases: dict[str, Case] = {}
    for where, row in _rows_of(place, documents, retrieve):
        found = row if isinstance(row, str) else normal_row(row)
        made = case_of(found, score_kind=score_kind) if isinstance(found, Mapping) else found
        if isinstance(made, Case) and made.id in cases:
            # Files of one folder may each number their rows from 1.
            is_other = cases[made.id].example.key != made.example.key
            made = replace(made, id=f"{where}: {made.id}") if is_other else "question repeated"
        if isinstance(made, str):
            skipped[made].append(where)
        else:
            cases[made.id] = made
    if not cases:
        reasons = "; ".join(f"{reason}: {len(places)}" for reason, places in skipped.items()) or "the file is empty"
        raise InvalidInputError(f"{place} holds no usable question ({reasons}).")
    return FileCases(place.name, tuple(cases.values()), {reason: tuple(places) for reason, places in skipped.items()})


def normal_row(row: object) -> Mapping[str, Any] | str:
    """A row of any known format in this library's schema, or why not."""
    if not isinstance(row, Mapping):
        return "not a JSON object"
    for keys, reader in _READERS:
        if keys <= row.keys():
            try:
                return reader(row)
            except RowLeftOut as reason:
                return str(reason)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError):
                return "a row that does not follow its format"
    return "no known format"


def _rows_of(place: Path, documents: str | Path | None, retrieve: int) -> Iterator[tuple[str, Any]]:
    """Where each row stands, with the row, or in its place a string that says why there is none."""
    if place.is_dir() and is_beir_folder(place):
        yield from beir_rows(place, retrieve)
    elif place.is_dir():
        files = sorted(one for one in place.iterdir() if one.is_file() and _is_data(one))
        if not files:
            raise InvalidInputError(f"{place} holds no .jsonl, .jsonl.gz, .json or .csv file.")
        for file in files:
            yield from ((f"{file.name} {where}", row) for where, row in _rows_of(file, documents, retrieve))
    elif place.suffix.lower() in (".csv", ".tsv"):
        yield from table_rows(place, documents, retrieve)
    else:
        yield from _unique(place)


def _is_data(file: Path) -> bool:
    return file.name.lower().endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".tsv"))


def _unique(file: Path) -> Iterator[tuple[str, object]]:
    """Rows of a JSON file. HELMET repeats a question with its gold at several depths: one id each."""
    seen: Counter[str] = Counter()
    for number, row in enumerate(json_rows(file), start=1):
        where = f"row {number}"
        if isinstance(row, str):
            yield where, "not a JSON object"
        elif isinstance(row, Mapping) and (own := row.get("id") or row.get("qid") or row.get("sample_id")):
            seen[str(own)] += 1
            yield where, {**row, "id": f"{own}" if seen[str(own)] == 1 else f"{own}#{seen[str(own)]}"}
        else:
            yield where, row
