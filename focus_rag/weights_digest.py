"""What decides what a model writes: its weights, by a short name that is told without reading all of them, and its own
generation settings.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor, nn

_SAMPLED = 256


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits made from names, shapes and a few hundred numbers of everything that is saved with the
    model.

    Some quantised weights are buffers. What is not in memory (offloaded to disk) counts by name and shape alone.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if not isinstance(weight, Tensor):
            continue
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        if weight.device.type != "meta":
            flat = weight.detach().flatten()
            digest.update(flat[:: max(flat.numel() // _SAMPLED, 1)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def own_generation(model: Any) -> dict[str, Any]:
    """What a model's generation settings say beside the defaults, in plain JSON types: penalties and the like act on
    every answer.
    """
    config = getattr(model, "generation_config", None)
    said = {} if config is None else config.to_diff_dict()
    return {
        name: value
        for name, value in json.loads(json.dumps(said, default=str)).items()
        if name != "transformers_version"
    }
