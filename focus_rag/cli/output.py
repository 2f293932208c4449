"""What the commands write: tables for people, JSON for programs, notes and progress on stderr."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from focus_rag.json_files import finite

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def one_line(text: str) -> str:
    """The text on one line, control characters out: documents and model output may hold escape sequences."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, width: int) -> str:
    """At most `width` characters on one line."""
    text = one_line(text)
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def write_json(data: Any) -> None:
    """Strict JSON on stdout: numbers that JSON does not have become null."""
    typer.echo(json.dumps(finite(data), ensure_ascii=False, indent=2, allow_nan=False))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[str] = ()) -> None:
    """A table on stdout; the columns named in `numbers` are aligned to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    _console().print(table)


def note(text: str) -> None:
    """One line on stderr."""
    typer.echo(one_line(text), err=True)


def progress() -> Progress:
    """A progress bar on stderr, gone when done; use as a context manager."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = _console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def quiet_libraries() -> None:
    """Keep the progress bars and warnings of the libraries underneath out of the answer."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)
