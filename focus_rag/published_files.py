"""Read the files in which directions were published with the paper."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from focus_rag.errors import ProfileError


def published_tensors(folder: Path, which: Literal["q", "k"]) -> list[Tensor]:
    """Read one `(query_heads, head_dim)` float32 tensor per layer, of query or of key directions.

    Raises:
        ProfileError: A layer is missing, or a file holds no tensor that can be read without running code.
    """
    found = {
        int(match[1]): path
        for path in folder.glob(f"head_{which}_directions_*.pth")
        if (match := re.fullmatch(rf"head_{which}_directions_(\d+)\.pth", path.name))
    }
    if not found or sorted(found) != list(range(len(found))):
        raise ProfileError(
            f"{folder} must hold head_{which}_directions_<layer>.pth for layers 0, 1, 2, ...; found layers {sorted(found)}."
        )
    return [_published_tensor(found[layer]) for layer in sorted(found)]


def _published_tensor(path: Path) -> Tensor:
    try:
        # weights_only: these files are pickles, and this mode builds tensors and nothing else.
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in whatever way it meets first
        raise ProfileError(f"{path} holds no tensor that can be read safely: {error!s:.300}") from error
    if not isinstance(tensor, Tensor):
        raise ProfileError(f"{path} holds a {type(tensor).__name__} where a tensor was expected.")
    return tensor.detach().float()


def published_ranking(path: Path) -> list[tuple[int, int]]:
    """Read the ranked `(layer, head)` pairs, best first.

    Raises:
        ProfileError: The file is not a JSON list of pairs.
    """
    try:
        return [(int(layer), int(head)) for layer, head in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ProfileError(f"{path} must be a JSON list of [layer, head] pairs: {error}") from error
