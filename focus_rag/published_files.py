"""Read the files in which directions were published with the paper."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from focus_rag.errors import ProfileError


@dataclass(frozen=True, slots=True)
class PublishedDirections:
    """What was published for one model.

    Attributes:
        ranking: `(layer, head)` pairs, the best contextual head first.
        queries: `(layers, query_heads, head_dim)` float32, after RoPE.
        keys: The same of keys.
    """

    ranking: list[tuple[int, int]]
    queries: Tensor
    keys: Tensor


def published_directions(folder: str | Path, model: str) -> PublishedDirections:
    """Read what was published for a model.

    Args:
        folder: The folder that holds `head_features/` and `contextual_heads_scores_full_seq/`.
        model: Hub id, e.g. `meta-llama/Llama-3.2-3B-Instruct`.

    Raises:
        ProfileError: Files are missing, cannot be read, or do not fit together.
    """
    root, name = Path(folder), model.replace("/", "_")
    ranking_file = root / "contextual_heads_scores_full_seq" / name / "relevant_heads.json"
    features = root / "head_features"
    directions_folder = features / name / "direction_relevant"
    if not ranking_file.is_file() or not directions_folder.is_dir():
        known = sorted(path.name for path in features.glob("*")) if features.is_dir() else []
        raise ProfileError(f"No published directions for {model!r} under {root}; found: {', '.join(known) or 'none'}.")
    ranking = _published_ranking(ranking_file)
    queries, keys = _published_tensors(directions_folder, "q"), _published_tensors(directions_folder, "k")
    shapes = {tuple(tensor.shape) for tensor in (*queries, *keys)}
    if len(queries) != len(keys) or len(shapes) != 1 or queries[0].dim() != 2:
        raise ProfileError(
            f"{directions_folder} must hold one (heads, head_dim) tensor of queries and of keys per layer; found "
            f"{len(queries)} and {len(keys)} of shapes {sorted(shapes)}."
        )
    layers, heads = len(queries), queries[0].shape[0]
    if any(not (0 <= layer < layers and 0 <= head < heads) for layer, head in ranking):
        raise ProfileError(f"{ranking_file} ranks heads outside of {layers} layers with {heads} heads.")
    return PublishedDirections(ranking, torch.stack(queries), torch.stack(keys))


def _published_tensors(folder: Path, which: Literal["q", "k"]) -> list[Tensor]:
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
            f"{folder} must hold head_{which}_directions_<layer>.pth for layers 0, 1, 2, ...; found layers "
            f"{sorted(found)}."
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


def _published_ranking(path: Path) -> list[tuple[int, int]]:
    """Read the ranked `(layer, head)` pairs, best first.

    Raises:
        ProfileError: The file is not a JSON list of pairs.
    """
    try:
        pairs = [(layer, head) for layer, head in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ProfileError(f"{path} must be a JSON list of [layer, head] pairs: {error}") from error
    wrong = next((pair for pair in pairs for one in pair if type(one) is not int), None)
    if wrong is not None:
        raise ProfileError(
            f"{path} must be a JSON list of [layer, head] pairs of whole numbers; it has {list(wrong)!r}."
        )
    return pairs
