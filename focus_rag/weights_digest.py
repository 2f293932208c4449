"""A short name for the weights of a model: tells one training from another without reading all of them."""

from __future__ import annotations

import hashlib

from torch import nn

_SAMPLED = 256


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits made from names, shapes and a few hundred numbers of every parameter.

    Parameters that are not in memory (offloaded to disk) count by name and shape alone.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta":
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(flat.numel() // _SAMPLED, 1)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
