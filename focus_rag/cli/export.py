"""`focus-rag export`: a checkpoint with the focus baked in, for engines that know nothing of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from focus_rag.cli.loading import DeviceOption, JsonOption, ModelOption, load_generator, parse_alpha
from focus_rag.cli.output import note, progress, write_json


def command(
    profile: Annotated[
        str, typer.Option("--profile", help="Focus profile of the model at site projection: folder or Hub id.")
    ],
    alpha: Annotated[
        str,
        typer.Option(
            "--alpha",
            help="How hard to focus: a number other than 0, for every request alike. There is no auto, and the "
            "profile's split is left out.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint; it must not exist, or be empty.")],
    model: ModelOption = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Precision of the weights and the checkpoint. Default: as the model is saved."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fold a profile at one alpha into the query biases of a checkpoint, for engines such as vLLM, SGLang or llama.cpp.

    focus_export.json in it holds token ids and the logits that the engine must come to: some drop biases without a
    word.

    Example: focus-rag export --model Qwen/Qwen2.5-7B-Instruct --profile ./profile --alpha 0.2 --out ./baked
    """
    from focus_rag.export import EXPORT_FILE, check_export, export_model
    from focus_rag.profile import FocusProfile

    factor = parse_alpha(alpha)
    loaded = FocusProfile.load(profile)
    check_export(loaded, out, factor)
    generator = load_generator(model, loaded, device, dtype=dtype or "auto")
    with progress() as bar:
        bar.add_task("exporting and checking", total=None)
        report = export_model(generator.model, generator.tokenizer, loaded, out, alpha=float(factor))
    for warning in report.warnings:
        note(f"warning: {warning}")
    if as_json:
        write_json({**asdict(report), "folder": str(report.folder)})
        return
    typer.echo(
        f"{report.folder}: {report.architecture} ({report.dtype}) with {report.heads} heads shifted at alpha "
        f"{report.alpha:g}, read back and checked: logits within {report.error:.1e} of the focused model's, which "
        f"differ from the bare model's by up to {report.moved:.2f}; {EXPORT_FILE} holds a probe for engines"
    )
