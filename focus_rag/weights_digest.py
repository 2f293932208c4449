"""A short name for the weights of a model: tells one training from another without reading all of them."""

from __future__ import annotations

import hashlib

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
