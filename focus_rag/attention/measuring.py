"""Measure where heads look during an ordinary forward pass, without attention matrices or a second pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall, last_position
from focus_rag.attention.formulas import aligned_membership, rows_of, span_mass, span_membership
from focus_rag.attention.tap import AttentionTap
from focus_rag.errors import AttachError, InvalidInputError
from focus_rag.model_layout import ModelLayout, rolling_sizes

Spans = Sequence[Sequence[tuple[int, int]]]


def heads_by_layer(heads: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Group `(layer, head)` pairs by layer, in the order given."""
    grouped: dict[int, list[int]] = {}
    for layer, head in heads:
        grouped.setdefault(layer, []).append(head)
    return grouped


def tapped_layers(model: nn.Module, layers: Iterable[int]) -> dict[nn.Module, int]:
    """Attention modules of chosen layers, as a tap wants them.

    Raises:
        UnsupportedModelError: The model's layout cannot be read.
    """
    wanted = set(layers)
    return {layer.attention: layer.index for layer in ModelLayout.of(model).layers if layer.index in wanted}


def require_heads(model: nn.Module, heads: Sequence[tuple[int, int]]) -> None:
    """Refuse `(layer, head)` pairs that the model has not.

    Raises:
        InvalidInputError: There are none, or the model lacks one.
        UnsupportedModelError: The model's layout cannot be read.
    """
    layout = ModelLayout.of(model)
    layers = {layer.index for layer in layout.layers}
    if not heads or any(layer not in layers or not 0 <= head < layout.query_heads for layer, head in heads):
        raise InvalidInputError(
            f"Give heads of the model as (layer, head): it has {len(layout.layers)} layers of {layout.query_heads} "
            f"heads, counted from 0; got {list(heads)!r}."
        )


class KeyCounter:
    """How many positions each layer has seen, whatever cache it reads from.

    A growing cache tells by its size, also where assisted decoding takes rejected tokens back. A rolling one (sliding
    window) keeps only the last positions and a static one has an empty tail: there tokens are counted. Taking tokens
    back from a rolling cache that is full already cannot be seen.

    Args:
        sizes: Of the caches that roll, by layer, see `rolling_sizes`.

    Raises:
        AttachError: In a forward pass: its rolling cache was full before anything was counted.
    """

    def __init__(self, sizes: Mapping[int, int] | None = None) -> None:
        self._sizes = dict(sizes or {})
        self._seen: dict[int, int] = {}
        self._static: set[int] = set()

    def update(self, layer: int, call: AttentionCall) -> int:
        """Count one attention call of a layer and return the positions seen, this call's included."""
        tokens, keys = call.query.shape[2], call.key.shape[2]
        before, size = self._seen.get(layer), call.window or self._sizes.get(layer)
        if tokens == keys:
            seen = tokens
            self._static.discard(layer)
        elif before is None or (tokens > 1 and size is None):
            seen = last_position(call) + 1  # of several tokens, the first ones of another sequence may be among them
            if seen < keys:
                self._static.add(layer)
            elif size is not None and keys - tokens >= size - 1:
                raise AttachError(
                    f"The cache of layer {layer} is a full sliding window that was filled before: how many tokens came "
                    "before it cannot be told. Run the prompt after attaching, too."
                )
        elif layer in self._static or (size is not None and keys - tokens >= size - 1):
            seen = before + tokens
        else:
            seen = keys
        self._seen[layer] = seen
        return seen


class SpanMeter(AttentionTap):
    """Mass that chosen heads put on token spans while the model runs; open it around `generate` or a forward pass.

    Args:
        model: The model.
        heads: `(layer, head)` pairs.
        spans: For every request its spans `[start, end)` in positions of the left-padded prompt.
        prompt_length: Length of the padded prompt in tokens.
        rows: Query positions to measure, in every forward pass; None measures the last one, which during generation are
            exactly the rows that predict response tokens.
        across_threads: Whether to measure when the model runs in another thread than the one that opened it.

    Raises:
        InvalidInputError: No heads or such as the model has not, or spans outside the prompt.
        UnsupportedModelError: The model's layout cannot be read.

    Attributes:
        steps: For every forward pass the mass `(requests, heads, rows, spans)` in float32, heads in the order given.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Sequence[tuple[int, int]],
        spans: Spans,
        prompt_length: int,
        *,
        rows: Sequence[int] | None = None,
        across_threads: bool = False,
    ) -> None:
        require_heads(model, heads)
        grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, grouped), across_threads=across_threads)
        if any(not 0 <= start <= end <= prompt_length for of_request in spans for start, end in of_request):
            raise InvalidInputError(f"Spans must lie within the prompt of {prompt_length} tokens; got {list(spans)!r}.")
        self._heads = list(heads)
        self._grouped = grouped
        self._rows = None if rows is None else torch.tensor(list(rows))
        self._member = span_membership(spans, prompt_length, torch.device("cpu"))
        self._counter = KeyCounter(rolling_sizes(model))
        self._masses: dict[int, list[Tensor]] = {layer: [] for layer in grouped}
        self._steps: list[Tensor] = []  # those of the masses that were asked for already

    def observe(self, layer: int, call: AttentionCall) -> None:
        seen = self._counter.update(layer, call)
        if self._member.device != call.query.device:
            self._member = self._member.to(call.query.device)
        member = rows_of(self._member, call.query.shape[0])
        if member is None:
            return
        tokens, device = call.query.shape[2], call.query.device
        rows = None
        if self._rows is not None:
            rows = self._rows.to(device)
        elif tokens > 1:
            rows = torch.arange(tokens - 1, tokens, device=device)
        member = aligned_membership(member, call.key.shape[2], seen)
        # Masses stay on the device: fetching them here would make every layer of every step wait for it.
        self._masses[layer].append(span_mass(call, self._grouped[layer], rows, member))

    @property
    def steps(self) -> list[Tensor]:
        fresh = min((len(masses) for masses in self._masses.values()), default=0)
        if fresh:
            grouped = [(layer, head) for layer, heads in self._grouped.items() for head in heads]
            order = [grouped.index(pair) for pair in self._heads]
            steps: list[list[Tensor]] = [[] for _ in range(fresh)]
            for masses in self._masses.values():
                taken, masses[:fresh] = masses[:fresh], []
                # Fetched from the device once for each layer, not once for each layer and step.
                fetched = torch.cat([mass.flatten() for mass in taken]).cpu().split([mass.numel() for mass in taken])
                for step, flat, mass in zip(steps, fetched, taken, strict=True):
                    step.append(flat.view(mass.shape))
            self._steps += [torch.cat(step, dim=1)[:, order] for step in steps]
        return list(self._steps)
