"""One number in place of a direction: less sink, or sharper queries, on the contextual heads.

They ask whether a focus direction does more than a scalar with the same heads could.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from focus_rag.attention.formulas import rows_of
from focus_rag.attention.measuring import heads_by_layer, tapped_layers
from focus_rag.attention.tap import AttentionTap
from focus_rag.errors import AttachError
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Batch, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask
from focus_rag.evaluation.methods.weight_edit import WeightEditTap, key_bias


@dataclass(frozen=True, slots=True)
class SinkBias:
    """The logit of the first token is lowered on the contextual heads."""

    bias: float
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"sink bias -{self.bias:g}"

    @property
    def note(self) -> str:
        return (
            f"On the contextual heads the logit of the first token is lowered by {self.bias:g} (one scalar, the same "
            "for each head: what moving attention off the sink of Xiao et al., arXiv 2309.17453, does by itself)."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case, self.name)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        def intervene(batch: Batch) -> AbstractContextManager[Any]:
            sinks = [[(batch.start(row), batch.start(row) + 1)] for row in range(len(batch.cases))]
            return WeightEditTap(engine.model, engine.heads, sinks, batch.length, key_bias(-self.bias))

        return engine.answer(cases, intervene=intervene, edits_weights=True)


@dataclass(frozen=True, slots=True)
class QueryTemperature:
    """Queries of the contextual heads are made longer: by a factor, or the more the more passages there are."""

    factor: float
    by_log_count: bool = False
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"query 1+{self.factor:g} log n" if self.by_log_count else f"query x{self.factor:g}"

    @property
    def note(self) -> str:
        if self.by_log_count:
            return (
                f"Queries of the contextual heads are multiplied by 1 + {self.factor:g} log(passages) (after "
                "Scalable-Softmax, Nakanishi, arXiv 2501.19399)."
            )
        return f"Queries of the contextual heads are multiplied by {self.factor:g}."

    def ask(self, engine: Engine, case: Case) -> Ask:
        factor = self._factor(case)
        return Ask(case, f"query x{factor!r}" if factor != 1.0 else BARE_SETTING)

    def _factor(self, case: Case) -> float:
        return 1.0 + self.factor * math.log(max(len(case.example.passages), 1)) if self.by_log_count else self.factor

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        factors = torch.tensor([self._factor(case) for case in cases])
        return engine.answer(cases, intervene=lambda _: QueryScaleTap(engine.model, engine.heads, factors))


class QueryScaleTap(AttentionTap):
    """Multiplies the queries of chosen heads.

    Args:
        model: The model.
        heads: `(layer, head)` pairs.
        factors: `(requests,)` factors.
    """

    def __init__(self, model: Any, heads: Sequence[tuple[int, int]], factors: Tensor) -> None:
        self._grouped = heads_by_layer(heads)
        super().__init__(tapped_layers(model, self._grouped))
        self._factors = factors

    def shift(self, layer: int, query: Tensor) -> Tensor:
        factors = rows_of(self._factors, query.shape[0])
        if factors is None:
            raise AttachError("The rows of this forward pass cannot be told apart; give one factor per row.")
        scale = torch.ones(factors.shape[0], query.shape[1], 1, 1)
        scale[:, self._grouped[layer]] = factors[:, None, None, None]
        return query * scale.to(query.device, query.dtype)
