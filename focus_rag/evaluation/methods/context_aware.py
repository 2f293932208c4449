"""Context-aware decoding (Shi et al., arXiv 2305.14739): what the passages change in the next token is amplified."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor

from focus_rag.attention.tap import undisturbed
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import Ask


@dataclass(frozen=True, slots=True)
class ContextAware:
    """Logits `(1 + weight) * with passages - weight * without`, greedily."""

    weight: float
    needs_profile: bool = False
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"context-aware decoding {self.weight:g}"

    @property
    def note(self) -> str:
        return (
            f"Logits (1 + {self.weight:g}) * with passages - {self.weight:g} * without, greedily: two models' worth of "
            "decoding (CAD, Shi et al., arXiv 2305.14739, which takes 0.5 for summaries and 1 where knowledge "
            "conflicts)."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case, self.name)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        without = engine.batch([case.with_passages([]) for case in cases])
        ids, mask = engine.padded([prompt.input_ids for prompt in without.prompts])
        return engine.decode(engine.batch(cases), [_Contrast(engine.model, ids, mask, self.weight)])


class _Contrast(LogitsProcessor):
    """Runs the prompt without passages beside the one with them, token by token."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, weight: float) -> None:
        self._model, self._ids, self._mask, self._weight = model, ids, mask, weight
        self._cache = DynamicCache(config=model.config)
        # transformers renamed the argument in 5.x and will drop the old name.
        named = "cache" in inspect.signature(model.forward).parameters
        self._cached = {"cache" if named else "past_key_values": self._cache}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._cache.get_seq_length():
            self._ids = input_ids[:, -1:]
            self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=-1)
        positions = (self._mask.cumsum(-1) - 1).clamp_min(0)[:, -self._ids.shape[1] :]
        with undisturbed():
            output = self._model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=positions,
                **self._cached,
                use_cache=True,
                logits_to_keep=1,
            )
        without: Tensor = output.logits[:, -1].to(scores.dtype)
        return (1 + self._weight) * scores - self._weight * without
