"""The command line of a fit on rows of one's own, with a model that lies beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def fit_command(folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> list[str]:
    """`focus-rag fit` of the model in `folder / "model"` on these rows, to `folder / "out"`."""
    examples = folder / "rows.jsonl"
    examples.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    places = {"--model": folder / "model", "--examples": examples, "--out": folder / "out"}
    return ["fit", *(str(part) for place in places.items() for part in place), *options]
