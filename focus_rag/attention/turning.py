"""Move vectors along the sequence after RoPE, by the model's own rotation.

A focus direction at site `post_rope` picks out keys by their absolute positions. Where the passages of a prompt stand
other than they did in the fit (a longer system prompt, a longer question before them), it has to be turned by as many
positions: then each logit it adds is what it was, because RoPE makes logits depend on differences of positions alone.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from focus_rag.attention.recording import LayerRecord, QueryKeyRecorder, Rotation, RotationKind
from focus_rag.attention.tap import undisturbed
from focus_rag.errors import UnsupportedModelError
from focus_rag.model_layout import ModelLayout, window_of
from focus_rag.probing import run_one_token


@dataclass(frozen=True, slots=True)
class _LayerTurn:
    """How a layer rotates: angle per position in radians, `(rotary_dim,)` in the layout of its cosines."""

    rotation: Rotation
    kind: RotationKind
    angles: Tensor

    def turned(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """See `Turning.turned`."""
        angles = positions[..., None].to(vectors.device, torch.float32) * self.angles.to(vectors.device)
        cos, sin = (found.to(vectors.dtype).expand(*vectors.shape[:-1], -1) for found in (angles.cos(), angles.sin()))
        return self.rotation.apply(vectors, cos, sin, self.kind)

    def is_like(self, other: _LayerTurn) -> bool:
        """Whether two layers rotate in the same way."""
        return self.kind == other.kind and self.rotation == other.rotation and torch.equal(self.angles, other.angles)


class Turning:
    """RoPE of every layer of a model, by any number of positions; see `Turning.of`.

    Rotations whose speed depends on the length of the sequence (dynamic scaling) are taken as they are for short ones.
    """

    def __init__(self, layers: dict[int, _LayerTurn]) -> None:
        self._layers = layers
        # The first layer that rotates as a layer does; in most models that is one for all.
        self._first_alike = {
            index: next(other for other, theirs in layers.items() if turn.is_like(theirs))
            for index, turn in layers.items()
        }

    @classmethod
    def of(cls, model: nn.Module) -> Turning:
        """Find out how a model rotates, from one token at a few positions; once per model.

        Raises:
            UnsupportedModelError: Its rotation cannot be reproduced.
        """
        with _LOCK:
            if model not in _KNOWN:
                _KNOWN[model] = cls(_layer_turns(model))
            return _KNOWN[model]

    def turned(self, layer: int, vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors as they would be so many positions further on.

        Args:
            layer: Layer index.
            vectors: `(..., head_dim)`, after RoPE.
            positions: By how much; its shape is spread over the leading axes of `vectors`.
        """
        return self._layers[layer].turned(vectors, positions)

    def all_turned(self, layers: Sequence[int], vectors: Tensor, positions: Tensor) -> Tensor:
        """Vectors of several layers at once, as `turned` turns those of one.

        Args:
            layers: Layer indices.
            vectors: `(layers, ..., head_dim)`, after RoPE.
            positions: By how much, the same for all layers; its shape is spread over the axes of `vectors` between the
                two.
        """
        firsts = [self._first_alike[layer] for layer in layers]
        if len(set(firsts)) == 1:
            return self._layers[firsts[0]].turned(vectors, positions)
        turned = torch.empty_like(vectors)
        for first in set(firsts):
            alike = [place for place, other in enumerate(firsts) if other == first]
            turned[alike] = self._layers[first].turned(vectors[alike], positions)
        return turned


_POSITIONS = (1, 16, 256, 1024)  # no further: rotations whose speed depends on the length are slow only for short ones
_LOCK = threading.Lock()
_KNOWN: weakref.WeakKeyDictionary[nn.Module, Turning] = weakref.WeakKeyDictionary()


def _layer_turns(model: nn.Module) -> dict[int, _LayerTurn]:
    layout = ModelLayout.of(model)
    heads = [(layer.index, head) for layer in layout.layers for head in range(layout.query_heads)]
    steps = []
    with undisturbed(), QueryKeyRecorder(model, heads, rows=[0], site="normed") as recorder:
        for position in (one for one in _POSITIONS if one < window_of(model)):
            try:
                run_one_token(model, position)
            except TypeError as error:
                raise UnsupportedModelError(
                    f"{layout.family!r} takes no positions, so its RoPE is not known."
                ) from error
            except UnsupportedModelError as error:
                raise UnsupportedModelError(f"How {layout.family!r} rotates cannot be told: {error}") from error
            steps.append((position, dict(recorder.records)))
    turns = {}
    for layer in layout.layers:
        record = steps[0][1].get(layer.index)
        if record is None or record.before is None:
            raise UnsupportedModelError(f"Layer {layer.index} ran without its query module, so its RoPE is not known.")
        rotation = Rotation(layer.attention)
        kind = rotation.kind_of(layer.index, record.before, record.queries, record.cos, record.sin)
        turns[layer.index] = _LayerTurn(
            rotation, kind, _angles([(position, records[layer.index]) for position, records in steps])
        )
    return turns


def _angles(records: Sequence[tuple[int, LayerRecord]]) -> Tensor:
    """Angle per position, `(rotary_dim,)`, empty where a layer has none, from what a layer did at rising positions.

    At position 1 no angle exceeds a half turn, and a scaled pair of cosine and sine has the angle of the plain one, in
    bfloat16 to 0.0025. Each further position refines the estimate, the one before telling how many whole turns there
    are. Kept on the CPU, where profiles are: reading it from a GPU would make each request wait.
    """
    angles = torch.zeros(0)
    for position, record in records:
        if record.cos is None or record.sin is None:
            return torch.zeros(0)
        found = torch.atan2(record.sin, record.cos)[0].double().cpu()
        turns = torch.round((angles * position - found) / math.tau) if len(angles) else torch.zeros_like(found)
        angles = (found + math.tau * turns) / position
    return angles.float()
