"""`focus-rag`, the command line. One module for each command; `COMMANDS` is the only list of them.

A command module imports nothing heavy at its top and holds a function `command` with typer annotations. What goes wrong
because of the input is a `FocusRagError`: `main` turns it into one line on stderr and exit status 2.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Final

import typer

from focus_rag.cli.output import one_line
from focus_rag.errors import FocusRagError

BAD_INPUT: Final = 2
INTERRUPTED: Final = 130

# Name on the command line -> module with the function `command`, in the order of `focus-rag --help`.
COMMANDS: Final = {
    "demo": "focus_rag.cli.demo",
    "ask": "focus_rag.cli.ask",
    "fit": "focus_rag.cli.fit",
    "eval": "focus_rag.cli.eval",
    "bench": "focus_rag.cli.bench",
    "import": "focus_rag.cli.import_profile",
    "export": "focus_rag.cli.export",
    "inspect": "focus_rag.cli.inspect_profile",
    "serve": "focus_rag.cli.serve",
}


def build_app() -> typer.Typer:
    """The application with every command in `COMMANDS`."""
    app = typer.Typer(
        name="focus-rag",
        help="Answer from documents with a local language model that attends to the passages that matter.",
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root() -> None:
        """Answer from documents with a local language model that attends to the passages that matter."""

    for name, module in COMMANDS.items():
        app.command(name)(importlib.import_module(module).command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; those of the process by default.

    Returns:
        Exit status: 0, 2 for bad input (one line on stderr says what), 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        # A code page without some character must not cost the whole output.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = build_app()(args=given or ["--help"], prog_name="focus-rag", standalone_mode=False)
    except FocusRagError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("focus-rag: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror or error}. What was finished before is kept where it was written.")
    except Exception as error:
        # typer brings its own copy of click or uses the installed one: their usage errors share no importable base.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _refuse(f"{message()} (`focus-rag --help` and `focus-rag COMMAND --help` show what is understood)")
    if status == INTERRUPTED:  # typer takes the interrupt of a command for itself
        typer.echo("focus-rag: interrupted", err=True)
    return status if isinstance(status, int) else 0


def _refuse(message: str) -> int:
    typer.echo(f"focus-rag: {one_line(message)}", err=True)
    return BAD_INPUT
