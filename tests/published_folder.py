"""A folder laid out as the one published with the paper."""

from __future__ import annotations

from pathlib import Path

import torch

RANKING = "contextual_heads_scores_full_seq/a_b/relevant_heads.json"
HEAD_FEATURES = "head_features/a_b/direction_relevant"


def published_folder(folder: Path) -> Path:
    """Two layers of two heads for a model named `a/b`."""
    (folder / RANKING).parent.mkdir(parents=True)
    (folder / HEAD_FEATURES).mkdir(parents=True)
    (folder / RANKING).write_text("[[1, 0], [0, 1]]")
    for which in "qk":
        for layer in range(2):
            torch.save(torch.randn(2, 4), folder / HEAD_FEATURES / f"head_{which}_directions_{layer}.pth")
    return folder
