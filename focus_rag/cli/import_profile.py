"""`focus-rag import`: the directions published with the paper, as a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from focus_rag.cli.loading import JsonOption
from focus_rag.cli.output import write_json


def command(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder with head_features/ and contextual_heads_scores_full_seq/.", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", help="Hub id of the model, e.g. meta-llama/Llama-3.2-3B-Instruct.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write the profile to; it must not exist, or be empty.")],
    top_k: Annotated[int, typer.Option("--top-k", help="How many of the best contextual heads to keep.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Turn the paper's published directions into a profile.

    Example: focus-rag import ./published --model Qwen/Qwen2.5-7B-Instruct --out ./qwen
    """
    from focus_rag.export import require_empty
    from focus_rag.profile import FocusProfile

    require_empty(out)
    profile = FocusProfile.from_published(folder, model=model, top_k=top_k)
    written = profile.save(out)
    if as_json:
        write_json({"profile": str(written), "model": model, "heads": len(profile.heads), "site": profile.site})
    else:
        typer.echo(f"{written}: {len(profile.heads)} contextual heads of {model}, site {profile.site}")
