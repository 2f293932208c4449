"""Options that several commands share, and the generator they load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from focus_rag.cli.output import progress, quiet_libraries
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from focus_rag.generator import FocusGenerator

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Hub id or folder of the model; default: the one that comes with focus-rag."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Focus profile of the model: folder or Hub id; the default model has its own."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where to run the model, e.g. cuda; default: where it is loaded, the CPU.")
]
AlphaOption = Annotated[str, typer.Option("--alpha", help="How hard to focus: a number, or auto for by retrieval.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def parse_alpha(text: str) -> float | Literal["auto"]:
    """The value of `--alpha`.

    Raises:
        InvalidInputError: Neither a finite number nor `auto`.
    """
    if text.strip().lower() == "auto":
        return "auto"
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise InvalidInputError(f"--alpha is a number or auto; got {text!r}.")
    return alpha


def load_generator(model: str | None, profile: str | None, device: str | None = None, *, split: int = 0) -> FocusGenerator:
    """Load model and profile with a sign of life on stderr; `split` is the number of passages of `ScoreSplit`, 0 for none.

    Raises:
        FocusRagError: Either cannot be loaded, or they do not match.
    """
    with progress() as bar:
        bar.add_task("loading the model", total=None)
        from focus_rag.generator import FocusGenerator
        from focus_rag.score_split import ScoreSplit

        quiet_libraries()
        generator = FocusGenerator.from_pretrained(model, profile=profile, split=ScoreSplit(passages=split) if split else None)
        move_model(generator, device)
        return generator


def move_model(generator: FocusGenerator, device: str | None) -> None:
    """Move the model to a device; None leaves it where it is.

    Raises:
        InvalidInputError: There is no such device here.
    """
    if device is None:
        return
    try:
        generator.model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
        raise InvalidInputError(f"The model cannot be moved to {device!r}: {str(error).splitlines()[0]}") from error
