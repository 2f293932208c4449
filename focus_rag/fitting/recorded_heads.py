"""Recorded examples of one model for chosen heads, and what their queries become under a shift at a site."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from focus_rag.attention.recording import LayerRecord, QueryKeyRecorder, Rotation, RotationKind
from focus_rag.attention.turning import Turning
from focus_rag.errors import InvalidInputError
from focus_rag.fitting.head_inputs import ExampleStore, HeadInputs
from focus_rag.fitting.head_scoring import Head
from focus_rag.fitting.teacher_forcing import TeacherForced, run_decoder
from focus_rag.model_layout import ModelLayout, Site
from focus_rag.query_layouts import QueryFormat, as_heads


class Recording:
    """Recorded examples of one model for chosen heads and one site, and how a shift enters there.

    Args:
        model: The model.
        heads: `(layer, head)` pairs.
        site: Where the shift enters.
        passages_at: For site `post_rope`, where the passages of every example are taken to begin: one direction then
            serves prompts whose passages stand at different positions. None leaves them where they are.
        memory_mb: Beyond so many megabytes examples go to a temporary folder.

    Attributes:
        heads: `(layer, head)` pairs.
        site: Where the shift enters.
        examples: The recorded examples, on disk where they outgrow `memory_mb` megabytes.
        head_dim: Size of a direction.
        slots: The key heads that the heads read, each once: index into the recorded layers, and key head.
        key_of: `(heads,)` index of each head's slot.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[Head],
        site: Site,
        *,
        passages_at: int | None = None,
        memory_mb: float = 2048,
    ) -> None:
        layout = ModelLayout.of(model)
        layout.require_site(site)
        self.heads = list(heads)
        self.site: Site = site
        self.examples = ExampleStore(memory_mb)
        self.head_dim = layout.head_dim
        self._model = model
        self._passages_at = passages_at if site == "post_rope" else None
        self._query_heads = layout.query_heads
        self._layers = sorted({layer for layer, _ in self.heads})
        place = {layer: index for index, layer in enumerate(self._layers)}
        self.layer_of = torch.tensor([place[layer] for layer, _ in self.heads])
        self.head_of = torch.tensor([head for _, head in self.heads])
        group = layout.query_heads // layout.key_heads
        read = [(place[layer], head // group) for layer, head in self.heads]
        self.slots = sorted(set(read))
        self.key_of = torch.tensor([self.slots.index(one) for one in read])
        by_index = {layer.index: layer for layer in layout.layers}
        self._rotation = Rotation(by_index[self._layers[0]].attention)
        self._kinds: list[RotationKind] = []
        self._norms: list[tuple[nn.Module, QueryFormat]] = []
        if site == "projection":
            for index in self._layers:
                projection, normed = by_index[index].projection, by_index[index].normed
                if normed is not None and projection is not None and normed.module is not projection.module:
                    norm = copy.deepcopy(normed.module).float().cpu().requires_grad_(False)
                    self._norms.append((norm, normed.format))
        self.scaling = torch.ones(len(self.heads))
        self.softcap: float | None = None
        self.sinks: Tensor | None = None

    def add(self, example: TeacherForced) -> None:
        """Run the bare model over one example and keep what the heads depend on."""
        with QueryKeyRecorder(self._model, self.heads, example.rows, self.site) as recorder:
            run_decoder(self._model, example.input_ids)
        layers = [self._moved(index, recorder.records[index], example) for index in self._layers]
        if not self.examples:
            self._read_constants(layers)
        length = len(example.input_ids)
        gold = torch.zeros(length, dtype=torch.bool)
        for start, end in example.gold:
            gold[start:end] = True
        passages = gold.clone()
        for start, end in example.others:
            passages[start:end] = True
        before = None
        if self._norms:
            before = torch.stack([record.before for record in layers if record.before is not None])
        with_positions = [
            (record.cos, record.sin) for record in layers if record.cos is not None and record.sin is not None
        ]
        self.examples.append(
            HeadInputs(
                queries=torch.stack(
                    [
                        layers[layer].queries[head]
                        for layer, head in zip(self.layer_of.tolist(), self.head_of.tolist(), strict=True)
                    ]
                ),
                keys=torch.stack([layers[layer].keys[key_head] for layer, key_head in self.slots]),
                visible=torch.stack([record.visible for record in layers]),
                before=before,
                cos=torch.stack([cos for cos, _ in with_positions]) if with_positions else None,
                sin=torch.stack([sin for _, sin in with_positions]) if with_positions else None,
                gold=gold,
                passages=passages,
            )
        )

    def _moved(self, layer: int, record: LayerRecord, example: TeacherForced) -> LayerRecord:
        """A record as if the passages stood where those of all examples are to stand."""
        if self._passages_at is None:
            return record
        turning = Turning.of(self._model)
        by = torch.tensor(self._passages_at - example.passages_at)
        return replace(
            record,
            queries=turning.turned(layer, record.queries, by),
            keys={head: turning.turned(layer, key, by) for head, key in record.keys.items()},
        )

    def _read_constants(self, layers: Sequence[LayerRecord]) -> None:
        self.scaling = torch.tensor([layers[layer].scaling for layer in self.layer_of.tolist()])
        self.softcap = layers[0].softcap
        if layers[0].sinks is not None:
            self.sinks = torch.stack([record.sinks for record in layers if record.sinks is not None])[
                self.layer_of, self.head_of
            ]
        if self.site == "post_rope":
            return
        for place, (index, record) in enumerate(zip(self._layers, layers, strict=True)):
            before = record.before
            if before is None:
                raise InvalidInputError(
                    f"Layer {index} ran without its query module; record with the model as it is loaded."
                )
            entering = self._normed(place, before[None])[0] if self._norms else before
            self._kinds.append(self._rotation.kind_of(index, entering, record.queries, record.cos, record.sin))

    def _normed(self, place: int, queries: Tensor) -> Tensor:
        """Run a layer's query norm over `(batch, query_heads, rows, head_dim)`."""
        norm, query_format = self._norms[place]
        batch, heads, rows, size = queries.shape
        if query_format == "heads_tokens":
            given = queries
        elif query_format == "tokens_heads":
            given = queries.transpose(1, 2)
        else:
            given = queries.transpose(1, 2).reshape(batch, rows, heads * size)
        return as_heads(norm(given), query_format, heads, size)

    def shifted(self, batch: Batch, directions: Tensor) -> Tensor:
        """Queries after RoPE under `directions`.

        Args:
            batch: Padded examples.
            directions: `(heads, head_dim)`, at the site.

        Returns:
            `(batch, heads, rows, head_dim)`.
        """
        if self.site == "post_rope":
            return batch.queries + directions[None, :, None]
        if not self._norms:
            shift = directions[None, :, None].expand(batch.queries.shape)
            return batch.queries + self._rotated(batch, shift)
        if batch.before is None:
            raise InvalidInputError("A batch for site 'projection' needs the queries recorded there.")
        whole = directions.new_zeros(len(self._layers), self._query_heads, self.head_dim)
        whole = whole.index_put((self.layer_of, self.head_of), directions)
        normed = torch.stack(
            [
                self._normed(place, batch.before[:, place] + whole[place][None, :, None])
                for place in range(len(self._layers))
            ],
            dim=1,
        )
        return self._rotated(batch, normed[:, self.layer_of, self.head_of])

    def _rotated(self, batch: Batch, queries: Tensor) -> Tensor:
        """Each layer's RoPE over `(batch, heads, rows, head_dim)`."""
        if batch.cos is None or batch.sin is None:
            return queries
        rotated = queries
        for kind in set(self._kinds) - {"none"}:
            chosen = torch.tensor(
                [self._kinds[layer] == kind for layer in self.layer_of.tolist()], device=queries.device
            )
            ours = self._rotation.apply(queries, batch.cos, batch.sin, kind)
            rotated = torch.where(chosen[None, :, None, None], ours, rotated)
        return rotated


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded to the same number of rows and keys; see `HeadInputs` for the fields.

    Attributes:
        row_weight: `(batch, rows)`: 1 / rows of the example, 0 on padding.
        visible: `(batch, layers, rows, keys)`.
        keys: `(batch, slots, keys, head_dim)`: never one copy per query head.
        cos: `(batch, heads, rows, rotary_dim)` or None; `sin` alike.
        before: `(batch, layers, query_heads, rows, head_dim)` or None.
        gold: `(batch, keys)`; `passages` alike.
    """

    queries: Tensor
    keys: Tensor
    visible: Tensor
    row_weight: Tensor
    before: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    gold: Tensor
    passages: Tensor


def padded_batch(recording: Recording, examples: Sequence[HeadInputs], device: torch.device | str = "cpu") -> Batch:
    """Pad examples to a common number of rows and keys; what is padded is invisible and weighs nothing."""
    rows = max(one.queries.shape[1] for one in examples)
    keys = max(one.keys.shape[1] for one in examples)
    heads, size = len(recording.heads), recording.head_dim
    count = len(examples)
    queries = torch.zeros(count, heads, rows, size)
    every_key = torch.zeros(count, len(recording.slots), keys, size)
    visible = torch.zeros(count, len(examples[0].visible), rows, keys, dtype=torch.bool)
    visible[..., 0] = True  # a padded row must see something, or its softmax is not a number
    weight = torch.zeros(count, rows)
    gold, passages = torch.zeros(count, keys, dtype=torch.bool), torch.zeros(count, keys, dtype=torch.bool)
    first = examples[0]
    before = None if first.before is None else torch.zeros(count, *first.before.shape[:2], rows, size)
    cos, sin = (
        None if one is None else torch.zeros(count, heads, rows, one.shape[-1]) for one in (first.cos, first.sin)
    )
    for place, one in enumerate(examples):
        r, k = one.queries.shape[1], one.keys.shape[1]
        queries[place, :, :r] = one.queries
        every_key[place, :, :k] = one.keys
        visible[place, :, :r, :k] = one.visible
        weight[place, :r] = 1.0 / r
        gold[place, :k], passages[place, :k] = one.gold, one.passages
        if before is not None and one.before is not None:
            before[place, :, :, :r] = one.before
        if cos is not None and sin is not None and one.cos is not None and one.sin is not None:
            cos[place, :, :r], sin[place, :, :r] = one.cos[recording.layer_of], one.sin[recording.layer_of]
    moved = [
        None if one is None else one.to(device)
        for one in (queries, every_key, visible, weight, before, cos, sin, gold, passages)
    ]
    return Batch(*moved)  # type: ignore[arg-type]


def record_examples(
    model: nn.Module,
    examples: Sequence[TeacherForced],
    heads: Sequence[Head],
    site: Site,
    *,
    passages_at: int | None = None,
    memory_mb: float = 2048,
    progress: Callable[[int], None] | None = None,
) -> Recording:
    """Record examples for training, see `Recording`: one bare forward pass each.

    Raises:
        UnsupportedModelError: Queries cannot be reached at the site, or RoPE cannot be reproduced.
    """
    recording = Recording(model, heads, site, passages_at=passages_at, memory_mb=memory_mb)
    for done, example in enumerate(examples, start=1):
        recording.add(example)
        if progress is not None:
            progress(done)
    return recording
