"""Options that several commands share, and the generator they load."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from focus_rag.cli.output import note, progress, quiet_libraries
from focus_rag.errors import InvalidInputError, first_problem
from focus_rag.score_order import ScoreKind

if TYPE_CHECKING:
    from focus_rag.generator import FocusGenerator
    from focus_rag.profile import FocusProfile
    from focus_rag.prompt_layout import PromptLayout
    from focus_rag.score_split import SplitSetting

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Hub id or folder of the model; default: the one that comes with focus-rag."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Focus profile of the model: folder or Hub id; the default model has its own."),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="Where to run the model, e.g. cuda; default: where it is loaded, the CPU."),
]
AlphaOption = Annotated[str, typer.Option("--alpha", help="How hard to focus: a number, or auto for by retrieval.")]
SplitOption = Annotated[
    str,
    typer.Option(
        "--split",
        help="Lean on the best scored passages by split softmax: auto for as the profile was fitted, off, or the "
        "exponent tau.",
    ),
]
ScoreKindOption = Annotated[
    ScoreKind | None,
    typer.Option(
        "--score-kind",
        help="What the scores of the passages are, of rows that do not say it; default: which end is better is "
        "told by their order.",
    ),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template-option",
        help="NAME=VALUE for the model's chat template, such as enable_thinking=false; as often as needed. A "
        "profile remembers those that it was fitted with.",
    ),
]
KeepBestOption = Annotated[
    int | None,
    typer.Option(
        "--keep-best",
        min=1,
        help="Answer from this many of the passages, the best by scores and shared words; for questions that one "
        "passage answers. Default: all.",
    ),
]
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


def parse_split(text: str) -> float | Literal["auto", "off"]:
    """The value of `--split`.

    Raises:
        InvalidInputError: Neither `auto` nor `off` nor an exponent.
    """
    from focus_rag.score_split import ScoreSplit

    name = text.strip().lower()
    if name == "auto":
        return "auto"
    if name == "off":
        return "off"
    try:
        return ScoreSplit(tau=float(text)).tau
    except ValueError as error:
        raise InvalidInputError(f"--split is auto, off or an exponent above 0 and up to 1; got {text!r}.") from error


def require_profile(
    model: str | None,
    profile: str | None,
    alpha: float | Literal["auto"],
    leaning: float | Literal["auto", "off"],
) -> None:
    """Refuse, before anything is loaded, what acts on the heads of a profile where none comes with the model.

    Raises:
        InvalidInputError: `--alpha` or `--split` needs one.
    """
    if model is None or profile is not None:
        return
    if alpha not in ("auto", 0.0):
        raise InvalidInputError("--alpha other than 0 needs the model's focus profile: give --profile.")
    if not isinstance(leaning, str):
        raise InvalidInputError("--split needs the model's focus profile, whose heads it acts on: give --profile.")


def split_at(leaning: float | Literal["auto", "off"], profile: FocusProfile | None) -> SplitSetting:
    """What `--split` means for a profile: an exponent stands in the place of its own, all else is as it was fitted."""
    from focus_rag.score_split import ScoreSplit

    if isinstance(leaning, str):
        return leaning
    fitted = (profile and profile.split) or ScoreSplit()
    return fitted.model_copy(update={"tau": leaning})


_PYTHONS = {"True": "true", "False": "false", "None": "null"}


def parse_template(options: Sequence[str] | None, layout: PromptLayout | None = None) -> PromptLayout | None:
    """A layout with the values of `--template-option`; None where none is given.

    Args:
        options: `NAME=VALUE` each; a value is JSON, one of Python's words for it, or text.
        layout: What else the layout has, other options among it; the default.

    Raises:
        InvalidInputError: One is not of this form, or cannot be set.
    """
    if not options:
        return None
    from pydantic import ValidationError

    from focus_rag.prompt_layout import PromptLayout

    found: dict[str, Any] = {}
    for option in options:
        name, is_given, value = option.partition("=")
        if not name.isidentifier() or not is_given:
            raise InvalidInputError(f"--template-option is NAME=VALUE, such as enable_thinking=false; got {option!r}.")
        try:
            found[name] = json.loads(_PYTHONS.get(value, value))
        except (ValueError, RecursionError):
            found[name] = value
    layout = layout or PromptLayout()
    try:
        return PromptLayout.model_validate(
            {**layout.model_dump(), "template_options": {**layout.template_options, **found}}
        )
    except ValidationError as error:
        raise InvalidInputError(f"--template-option: {first_problem(error.errors())}.") from error


def load_generator(
    model: str | None,
    profile: str | FocusProfile | None,
    device: str | None = None,
    *,
    template: Sequence[str] | None = None,
    **settings: Any,
) -> FocusGenerator:
    """Load model and profile with a sign of life on stderr.

    Args:
        model: As for `FocusGenerator.from_pretrained`.
        profile: As for `FocusGenerator.from_pretrained`.
        device: See `move_model`.
        template: See `parse_template`; in the layout of the profile.
        **settings: More of its arguments.

    Raises:
        FocusRagError: Either cannot be loaded, or they do not match.
    """
    with progress() as bar:
        bar.add_task("loading the model", total=None)
        from focus_rag.generator import FocusGenerator
        from focus_rag.profile import FocusProfile

        quiet_libraries()
        if isinstance(profile, str):
            profile = FocusProfile.load(profile)
        layout = parse_template(template, profile.layout if profile else None)
        generator = FocusGenerator.from_pretrained(model, profile=profile, layout=layout, **settings)
        warn_of_unread(layout, generator)
        move_model(generator, device)
        return generator


def warn_of_unread(layout: PromptLayout | None, generator: FocusGenerator) -> None:
    """Tell of options in the layout of `--template-option` that the model's chat template does not read, such as
    misspelt ones.
    """
    text = str(generator.tokenizer.chat_template or "")
    for name in () if layout is None else layout.template_options:
        if name not in text:
            note(f"warning: the model's chat template does not read {name!r}")


def move_model(generator: FocusGenerator, device: str | None) -> None:
    """Move the model to a device; None leaves it where it is.

    Raises:
        InvalidInputError: There is no such device here.
    """
    if device is None:
        return
    import torch

    try:
        if torch.device(device).type == "meta":
            raise InvalidInputError("The model cannot be moved to 'meta', which holds no weights: give cpu or cuda.")
        generator.model.to(device)
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA asserts that it has it
        raise InvalidInputError(f"The model cannot be moved to {device!r}: {str(error).splitlines()[0]}") from error
