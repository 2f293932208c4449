"""Replace attention weights of chosen heads by an edit of them: the ground of the rivals that need a marked span."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall, head_weights, put_back, row_blocks, values_of
from focus_rag.attention.formulas import aligned_membership, rows_of, span_membership
from focus_rag.attention.measuring import KeyCounter, Spans, heads_by_layer, tapped_layers
from focus_rag.attention.tap import AttentionTap
from focus_rag.errors import AttachError
from focus_rag.model_layout import rolling_sizes

Edit = Callable[[Tensor, Tensor], Tensor]
"""From weights `(batch, heads, rows, keys)` and an indicator `(batch, 1, 1, keys)` to new weights."""


def key_bias(bias: float) -> Edit:
    """Add a constant to the logits of the marked keys, which multiplies their weights before they are renormalised."""
    factor = math.exp(bias)

    def edit(weights: Tensor, marked: Tensor) -> Tensor:
        scaled = weights * (1 + (factor - 1) * marked)
        return _renormalised(scaled, weights)

    return edit


def target_share(share: float) -> Edit:
    """Where the marked keys have less than a share of the mass, add `log(share / mass)` to their logits."""

    def edit(weights: Tensor, marked: Tensor) -> Tensor:
        mass = (weights * marked).sum(dim=-1, keepdim=True)
        factor = torch.where((mass > 0) & (mass < share), share / mass.clamp_min(1e-30), torch.ones_like(mass))
        scaled = weights * (1 + (factor - 1) * marked)
        return _renormalised(scaled, weights)

    return edit


def _renormalised(edited: Tensor, weights: Tensor) -> Tensor:
    """Edited weights with the mass that softmax gives them; what an attention sink without a key has (gpt_oss) takes
    part as it is.
    """
    in_sink = (1 - weights.sum(dim=-1, keepdim=True)).clamp_min(0)
    return edited / (edited.sum(dim=-1, keepdim=True) + in_sink)


class WeightEditTap(AttentionTap):
    """Recomputes the output of chosen heads from edited weights, in every row from the first one on.

    Args:
        model: The model.
        heads: `(layer, head)` pairs.
        spans: For every request the spans to mark, in positions of the left-padded prompt.
        prompt_length: Length of the padded prompt in tokens.
        edit: The edit.
        first_row: First query position to edit.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[tuple[int, int]],
        spans: Spans,
        prompt_length: int,
        edit: Edit,
        *,
        first_row: int = 0,
    ) -> None:
        self._grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, self._grouped))
        member = span_membership(spans, prompt_length, torch.device("cpu"))
        self._member = member.amax(dim=-1, keepdim=True) if member.shape[-1] else member.new_zeros(*member.shape[:2], 1)
        self._edit = edit
        self._first_row = first_row
        self._counter = KeyCounter(rolling_sizes(model))

    def change(self, layer: int, call: AttentionCall, output: Tensor) -> Tensor:
        seen = self._counter.update(layer, call)
        tokens, keys = call.query.shape[2], call.key.shape[2]
        self._member = self._member.to(output.device)
        member = rows_of(self._member, call.query.shape[0])
        if member is None:
            raise AttachError("The rows of this forward pass cannot be told apart; give one list of spans per row.")
        marked = aligned_membership(member, keys, seen)[:, None, None, :, 0]
        output = output.clone()
        for part, own, rows, _ in row_blocks(call, output, max(self._first_row - (seen - tokens), 0)):
            for group, weights in head_weights(part, self._grouped[layer], rows):
                width = weights.shape[-1]
                edited = self._edit(weights, torch.nn.functional.pad(marked, (0, width - marked.shape[-1])))
                put_back(own, rows, group, values_of(part, group, edited, 0, width))
        return output
