"""JSON in and out: rows of lines and lists, gzip or not, and numbers that JSON can hold."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from focus_rag.errors import InvalidInputError


def json_rows(file: Path) -> Iterator[object]:
    """Rows of a file; a line that is no JSON comes as None.

    A file that is one JSON list, or an object with its rows under `data`, is read whole.

    Raises:
        InvalidInputError: It cannot be read as UTF-8 text.
    """
    try:
        with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rt", encoding="utf-8-sig") as lines:
            if file.name.lower().endswith((".json", ".json.gz")) and (whole := _whole(lines)) is not None:
                rows = whole.get("data", [whole]) if isinstance(whole, dict) else whole
                yield from rows if isinstance(rows, list) else [rows]
                return
            for line in lines:
                if line.strip():
                    yield _parsed(line)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise InvalidInputError(f"{file} cannot be read as JSON in UTF-8 ({error}).") from error


def _whole(lines: TextIO) -> Any:
    """What a file holds that is one value; None where it is lines of them after all."""
    try:
        return json.load(lines)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        lines.seek(0)
        return None


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, nesting without end
        return None


def finite(data: Any) -> Any:
    """The same data with null for what is no number: a mean of nothing, say, which JSON cannot hold."""
    if isinstance(data, dict):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
