"""Record what the attention of chosen heads depends on: queries of chosen rows, keys, masks, and RoPE as a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall, visible_keys
from focus_rag.attention.measuring import heads_by_layer, tapped_layers
from focus_rag.attention.tap import HOOKS_LOCK, AttentionTap
from focus_rag.errors import UnsupportedModelError
from focus_rag.model_layout import LayerLayout, ModelLayout, Site
from focus_rag.query_layouts import as_heads

RotationKind = Literal["whole", "first part", "none"]
_TOLERANCE = 0.03  # of the query's own size: a wrong rotation is off by its whole size, bfloat16 by less than 0.01


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer of one forward pass, rows `rows` only.

    Attributes:
        queries: `(query_heads, rows, head_dim)`, after RoPE.
        keys: Key head to `(keys, head_dim)`, after RoPE; only those that chosen heads read.
        visible: `(rows, keys)` boolean.
        scaling: Factor on the logits.
        softcap: See `AttentionCall`.
        sinks: `(query_heads,)` or None.
        before: `(query_heads, rows, head_dim)` queries at the site, before RoPE; None for site `post_rope`.
        cos: `(rows, rotary_dim)` position embeddings of the rows; None for site `post_rope` or where the layer has
            none.
        sin: Like `cos`.
    """

    queries: Tensor
    keys: dict[int, Tensor]
    visible: Tensor
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    before: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


@dataclass(slots=True)
class _Pending:
    """What a layer's hooks saw on the way to its attention call."""

    before: dict[int, Tensor] = field(default_factory=dict)
    positions: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class QueryKeyRecorder(AttentionTap):
    """Keeps the queries of chosen rows and the keys of chosen heads while the bare model runs one sequence.

    Args:
        model: The model.
        heads: `(layer, head)` pairs.
        rows: Query positions.
        site: Where a shift is to enter; for sites before RoPE the queries there and the rows' position embeddings are
            kept too.

    Attributes:
        records: Layer index to what was recorded in the last forward pass.
    """

    def __init__(
        self, model: nn.Module, heads: Sequence[tuple[int, int]], rows: Sequence[int], site: Site = "post_rope"
    ) -> None:
        self._grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, self._grouped))
        self._layout = ModelLayout.of(model)
        self._layout.require_site(site)
        self._rows = torch.tensor(list(rows))
        self._site: Site = site
        self._pending = _Pending()
        self._hooks = ExitStack()
        self.records: dict[int, LayerRecord] = {}

    def open(self) -> None:
        super().open()
        if self._site == "post_rope":
            return
        for layer in self._layout.layers:
            if layer.index in self._grouped:
                self._hook(layer)

    def close(self) -> None:
        self._hooks.close()
        super().close()

    def _hook(self, layer: LayerLayout) -> None:
        site = layer.query_module(self._site)
        if site is None:  # pragma: no cover - require_site has refused such models
            raise UnsupportedModelError(f"Layer {layer.index} has no module that holds queries at site {self._site!r}.")
        index, query_format = layer.index, site.format

        def read_query(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not self.is_open_here:  # another thread runs the model
                return
            queries = as_heads(output, query_format, self._layout.query_heads, self._layout.head_dim).detach()
            self._pending.before[index] = queries[0][:, self._rows.to(queries.device)].float().cpu()

        def read_positions(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.is_open_here:
                return
            given = [kwargs.get("position_embeddings"), *args]
            pair = next((one for one in given if _is_pair(one)), None)
            if pair is not None:
                self._pending.positions[index] = (self._of_rows(pair[0]), self._of_rows(pair[1]))

        with HOOKS_LOCK:
            self._hooks.callback(site.module.register_forward_hook(read_query).remove)
            self._hooks.callback(layer.attention.register_forward_pre_hook(read_positions, with_kwargs=True).remove)

    def _of_rows(self, embedding: Tensor) -> Tensor:
        return embedding.detach()[0][self._rows.to(embedding.device)].float().cpu()

    def observe(self, layer: int, call: AttentionCall) -> None:
        rows = self._rows.to(call.query.device)
        tokens, keys = call.query.shape[2], call.key.shape[2]
        group = call.query.shape[1] // call.key.shape[1]
        cos, sin = self._pending.positions.get(layer, (None, None))
        self.records[layer] = LayerRecord(
            queries=call.query[0][:, rows].detach().float().cpu(),
            keys={
                head: call.key[0, head].detach().float().cpu()
                for head in {one // group for one in self._grouped[layer]}
            },
            visible=_as_boolean(visible_keys(call, rows, tokens, keys), len(rows), keys).cpu(),
            scaling=call.scaling,
            softcap=call.softcap,
            sinks=None if call.sinks is None else call.sinks.detach().float().cpu(),
            before=self._pending.before.get(layer),
            cos=cos,
            sin=sin,
        )


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(one, Tensor) and one.dim() == 3 for one in value)
    )


def _as_boolean(visible: Tensor | None, rows: int, keys: int) -> Tensor:
    if visible is None:
        return torch.ones(rows, keys, dtype=torch.bool)
    first = visible[0, 0]
    return first if first.dtype == torch.bool else first > torch.finfo(first.dtype).min / 2


class Rotation:
    """RoPE of one attention class as a function of queries: the model's own, checked against recorded queries.

    Args:
        attention: An attention module; its file's `apply_rotary_pos_emb` is used.
    """

    def __init__(self, attention: nn.Module) -> None:
        home = sys.modules[type(attention).__module__]
        self._function: Callable[..., Any] | None = getattr(home, "apply_rotary_pos_emb", None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rotation) and self._function is other._function

    def __hash__(self) -> int:
        return hash(self._function)

    def apply(self, queries: Tensor, cos: Tensor, sin: Tensor, kind: RotationKind) -> Tensor:
        """Rotate queries.

        Args:
            queries: `(..., rows, head_dim)`, before RoPE.
            cos: `(..., rows, rotary_dim)`, same leading axes.
            sin: Like `cos`.
            kind: What the layer rotates, see `kind_of`.
        """
        if kind == "none" or self._function is None:
            return queries
        rows, size = queries.shape[-2:]
        rotary = cos.shape[-1]
        part = queries[..., :rotary] if kind == "first part" else queries
        flat = part.reshape(-1, 1, rows, part.shape[-1])
        flat_cos, flat_sin = cos.reshape(-1, rows, rotary), sin.reshape(-1, rows, rotary)
        rotated = self._function(flat, flat, flat_cos, flat_sin)[0].reshape(part.shape)
        return rotated if kind == "whole" else torch.cat([rotated, queries[..., rotary:size]], dim=-1)

    def kind_of(
        self, layer: int, before: Tensor, after: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> RotationKind:
        """Find out what a layer rotates, by comparing queries recorded before and after.

        Args:
            layer: Layer index, for the message.
            before: `(query_heads, rows, head_dim)`, what enters RoPE.
            after: Same shape, what attention received.
            cos: `(rows, rotary_dim)`, or None.
            sin: Like `cos`.

        Raises:
            UnsupportedModelError: No rotation known here turns the one into the other.
        """
        kinds: list[RotationKind] = ["none"]
        if cos is not None and sin is not None and self._function is not None:
            kinds = ["first part", "none"] if cos.shape[-1] < before.shape[-1] else ["whole", "none"]
            kinds = ["whole", *kinds] if "whole" not in kinds else kinds
        for kind in kinds:
            try:
                found = (
                    before
                    if cos is None or sin is None
                    else self.apply(before, _spread(cos, before), _spread(sin, before), kind)
                )
            except RuntimeError:  # this file's function takes another shape than this kind hands over
                continue
            if found.shape == after.shape and bool((found - after).norm() <= _TOLERANCE * after.norm()):
                return kind
        raise UnsupportedModelError(
            f"RoPE of layer {layer} could not be reproduced from the model's own function, so directions before RoPE "
            "cannot be trained for this model. Fit with site 'post_rope'."
        )


def _spread(embedding: Tensor, queries: Tensor) -> Tensor:
    return embedding.expand(*queries.shape[:-2], *embedding.shape)
