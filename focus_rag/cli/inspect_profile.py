"""`focus-rag inspect`: what is in a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_rag.cli.loading import JsonOption
from focus_rag.cli.output import write_json, write_table
from focus_rag.errors import InvalidInputError

if TYPE_CHECKING:
    from focus_rag.profile import FocusProfile


def command(
    profile: Annotated[
        str | None,
        typer.Argument(help="Folder or Hub id; default: the profile that comes with focus-rag.", show_default=False),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Draw layer by head into this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the heads, scores and directions of a profile.

    Example: focus-rag inspect ./qwen --png heads.png
    """
    from focus_rag.profile import FocusProfile

    if profile is None:
        from focus_rag.embedded import embedded_profile_folder

        profile = str(embedded_profile_folder())
    loaded = FocusProfile.load(profile)
    record = _record(loaded)
    if png is not None:
        _draw(record, png)
    if as_json:
        write_json(record)
        return
    fingerprint = record["model"]
    typer.echo(
        f"{fingerprint['model_id']}: {len(record['heads'])} contextual heads of "
        f"{fingerprint['layers']} layers x {fingerprint['query_heads']} heads, site {record['site']}"
    )
    if record["passages_at"] is not None:
        typer.echo(f"trained where passages begin at token {record['passages_at']}, turned where they begin elsewhere")
    if loaded.layout is not None:
        for name, value in loaded.layout.model_dump(mode="json", exclude_defaults=True).items():
            typer.echo(f"prompts with {name}: {json.dumps(value)}")
    typer.echo(f"alpha policy: {', '.join(f'{name} {value}' for name, value in record['policy'].items())}")
    typer.echo(f"split: {'none' if loaded.split is None else loaded.split.in_words}")
    if loaded.confidence is not None:
        typer.echo(
            f"confidence: {', '.join(f'{name} {weight:.3g}' for name, weight in loaded.confidence.named.items())}"
        )
    write_table(
        ["", "layer", "head", "contextual score", "direction norm"],
        [
            [
                str(number),
                str(head["layer"]),
                str(head["head"]),
                "" if head["score"] is None else f"{head['score']:.3f}",
                f"{head['direction_norm']:.3f}",
            ]
            for number, head in enumerate(record["heads"], 1)
        ],
        numbers=["", "layer", "head", "contextual score", "direction norm"],
    )
    if png is not None:
        typer.echo(f"drawn: {png}")


def _record(profile: FocusProfile) -> dict[str, Any]:
    return {
        "model": profile.fingerprint.model_dump(mode="json"),
        "site": profile.site,
        "passages_at": profile.passages_at,
        "policy": profile.policy.model_dump(mode="json"),
        "split": None if profile.split is None else profile.split.model_dump(mode="json"),
        "confidence": None if profile.confidence is None else profile.confidence.model_dump(mode="json"),
        "layout": None if profile.layout is None else profile.layout.model_dump(mode="json"),
        "heads": [
            {"layer": head.layer, "head": head.head, "score": head.score, "direction_norm": float(norm)}
            for head, norm in zip(profile.heads, profile.directions.norm(dim=-1), strict=True)
        ],
        "provenance": profile.provenance,
        "report": profile.report,
    }


def _draw(record: dict[str, Any], path: Path) -> None:
    """Heat map of layers by heads; heads outside the profile stay blank.

    Raises:
        InvalidInputError: The picture cannot be written there.
    """
    import numpy as np
    from matplotlib.figure import Figure

    heads = record["heads"]
    scored = all(head["score"] is not None for head in heads)
    layers, width = record["model"]["layers"], record["model"]["query_heads"]
    values = np.full((layers, width), np.nan)
    for head in heads:
        values[head["layer"], head["head"]] = head["score"] if scored else head["direction_norm"]
    figure = Figure(figsize=(2 + 0.25 * width, 1.5 + 0.22 * layers), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(values, aspect="auto", cmap="viridis", origin="lower", vmin=0.0)
    figure.colorbar(picture, label="contextual score" if scored else "norm of the focus direction")
    axes.set(xlabel="query head", ylabel="layer", title=f"{record['model']['model_id']}: contextual heads")
    axes.set_xticks(range(0, width, max(1, width // 8)))
    axes.set_yticks(range(0, layers, max(1, layers // 14)))
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise InvalidInputError(f"Cannot write the picture {path}: {error.strerror or error}.") from error
