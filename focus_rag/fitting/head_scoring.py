"""Contextual scoring: how much attention every head puts on the relevant passage while the model answers.

Zhu et al. (arXiv 2503.23306), section 3: the contextual score of a head is its attention mass on the gold passage, from
the rows that predict the response, averaged over examples. One forward pass per example, over any attention kernel;
attention matrices never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from focus_rag.attention.attention_call import AttentionCall
from focus_rag.attention.formulas import span_mass, span_membership
from focus_rag.attention.measuring import heads_by_layer, tapped_layers
from focus_rag.attention.tap import AttentionTap
from focus_rag.errors import InvalidInputError
from focus_rag.fitting.teacher_forcing import TeacherForced, run_decoder
from focus_rag.model_layout import ModelLayout

PARTS = ("gold", "others", "strongest_other", "sink", "rest")
"""What mass is counted on: the gold passages, all other passages, the one other passage that gets most, the prompt's
first tokens, and everything else (question, instruction, response)."""

Head = tuple[int, int]


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Attention mass of every head, averaged over examples.

    Attributes:
        mean: `(layers, query_heads, parts)` probability mass, parts in the order of `PARTS`.
        standard_error: Same shape, of the mean over examples.
        examples: How many there were.
    """

    mean: Tensor
    standard_error: Tensor
    examples: int

    @property
    def gold(self) -> Tensor:
        """`(layers, query_heads)` contextual scores."""
        return self.mean[..., 0]

    def of(self, head: Head, part: str = "gold") -> float:
        """Mean mass of one head on one part."""
        return float(self.mean[head[0], head[1], PARTS.index(part)])

    def ranking(self) -> list[Head]:
        """All `(layer, head)` pairs, highest contextual score first; ties by position."""
        heads = self.gold.shape[1]
        order = torch.argsort(self.gold.flatten(), descending=True, stable=True).tolist()
        return [(index // heads, index % heads) for index in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them."""
        return {
            "parts": list(PARTS),
            "mean": self.mean.tolist(),
            "standard_error": self.standard_error.tolist(),
            "examples": self.examples,
        }

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> HeadScores:
        """Read what `to_dict` wrote."""
        return cls(torch.tensor(found["mean"]), torch.tensor(found["standard_error"]), int(found["examples"]))


class _MassTap(AttentionTap):
    """Mass of chosen heads on the spans of one sequence, averaged over rows, while the model runs over it.

    Results go into one tensor made beforehand. Small ones left behind by every layer would lie between the large blocks
    of the forward pass and keep the allocator from using those again: at 4,096 tokens that alone cost a third of the
    pass's memory.

    Attributes:
        masses: `(heads, spans)` probability mass in float32.
    """

    def __init__(
        self, model: nn.Module, heads: Sequence[Head], example: TeacherForced, spans: Sequence[tuple[int, int]]
    ) -> None:
        self._grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, self._grouped))
        self._places = {
            layer: torch.tensor([place for place, (of_layer, _) in enumerate(heads) if of_layer == layer])
            for layer in self._grouped
        }
        self._rows = torch.tensor(example.rows)
        self._member = span_membership([spans], len(example.input_ids), torch.device("cpu"))
        self.masses = torch.zeros(len(heads), len(spans))

    def observe(self, layer: int, call: AttentionCall) -> None:
        device = call.query.device
        mass = span_mass(call, self._grouped[layer], self._rows.to(device), self._member.to(device))
        self.masses[self._places[layer]] = mass[0].mean(dim=1).cpu()


def example_masses(
    model: nn.Module, example: TeacherForced, *, sink_tokens: int = 4, heads: Sequence[Head] | None = None
) -> Tensor:
    """Masses of one example, from one forward pass that stops before the vocabulary projection.

    Args:
        model: The model.
        example: The example; its `rows` are averaged.
        sink_tokens: How many first tokens of the prompt count as the sink.
        heads: Which heads; all by default.

    Returns:
        `(heads, parts)` probability mass in float32.
    """
    if heads is None:
        layout = ModelLayout.of(model)
        heads = [(layer.index, head) for layer in layout.layers for head in range(layout.query_heads)]
    sink = (0, min(sink_tokens, example.prompt_tokens))
    spans = [*example.gold, *example.others, sink]
    with _MassTap(model, heads, example, spans) as tap:
        run_decoder(model, example.input_ids)
    mass = tap.masses
    split = len(example.gold)
    gold, others, first = mass[:, :split].sum(dim=1), mass[:, split:-1], mass[:, -1]
    strongest = others.amax(dim=1) if example.others else torch.zeros_like(gold)
    every_other = others.sum(dim=1)
    rest = (1 - gold - every_other - first).clamp_min(0.0)
    return torch.stack([gold, every_other, strongest, first, rest], dim=1)


def score_heads(
    model: nn.Module,
    examples: Sequence[TeacherForced],
    *,
    sink_tokens: int = 4,
    progress: Callable[[int], None] | None = None,
) -> HeadScores:
    """Contextual scores of all heads of a model.

    Args:
        model: The model, bare.
        examples: Teacher-forced examples.
        sink_tokens: How many first tokens of the prompt count as the sink.
        progress: Called with the number of examples done.

    Raises:
        InvalidInputError: No examples.
        UnsupportedModelError: The model's layout cannot be read.
    """
    if not examples:
        raise InvalidInputError("Contextual scoring needs at least one example with a gold passage; got none.")
    layout = ModelLayout.of(model)
    masses = []
    for done, example in enumerate(examples, start=1):
        masses.append(example_masses(model, example, sink_tokens=sink_tokens))
        if progress is not None:
            progress(done)
    every = torch.stack(masses).double()
    error = every.std(dim=0, unbiased=True) / len(masses) ** 0.5 if len(masses) > 1 else torch.zeros_like(every[0])
    shape = (len(layout.layers), layout.query_heads, len(PARTS))
    return HeadScores(every.mean(dim=0).float().view(shape), error.float().view(shape), len(masses))
