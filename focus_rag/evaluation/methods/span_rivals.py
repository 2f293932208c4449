"""Rivals that strengthen a marked span: PASTA, InstABoost and SpotLight.

They were made for instructions that a user marks. Nobody marks the relevant passage, so each is run with the best
scored passage, with all passages, and, as an oracle, with the gold ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from focus_rag.built_prompt import TokenSpan
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Batch, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask
from focus_rag.evaluation.methods.retrieval_rules import PassageChoice, chosen_passages
from focus_rag.evaluation.methods.weight_edit import Edit, WeightEditTap, key_bias, target_share


@dataclass(frozen=True)
class _SpanRival:
    """Edits attention weights on or around the marked passages."""

    which: PassageChoice

    @property
    def oracle(self) -> bool:
        return self.which == "gold"

    @property
    def name(self) -> str:
        raise NotImplementedError

    def ask(self, engine: Engine, case: Case) -> Ask:
        marked = chosen_passages(case, self.which)
        return Ask(case, f"{self.name} {marked}" if marked else BARE_SETTING)

    def _answer(
        self,
        engine: Engine,
        cases: Sequence[Case],
        heads: Sequence[tuple[int, int]],
        edit: Edit,
        *,
        outside: bool = False,
    ) -> list[Answered]:
        def intervene(batch: Batch) -> AbstractContextManager[Any]:
            spans = batch.spans_of(lambda case: chosen_passages(case, self.which))
            edited = [_complement(of_row, batch.length) if of_row else [] for of_row in spans] if outside else spans
            return WeightEditTap(engine.model, heads, edited, batch.length, edit, first_row=_earliest(spans))

        return engine.answer(cases, intervene=intervene, edits_weights=True)


@dataclass(frozen=True)
class Pasta(_SpanRival):
    """Everything but the span is turned down on chosen heads."""

    alpha: float = 0.01
    needs_profile: bool = True

    @property
    def name(self) -> str:
        return f"PASTA, {self.which}"

    @property
    def note(self) -> str:
        return (
            f"On the contextual heads, prompt tokens outside the span ({self.which}) are scaled by {self.alpha:g} "
            "before renormalising (PASTA, Zhang et al., arXiv 2311.02262; its published scale, our heads)."
        )

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return self._answer(engine, cases, engine.heads, key_bias(math.log(self.alpha)), outside=True)


@dataclass(frozen=True)
class InstABoost(_SpanRival):
    """The span is turned up on every head of every layer."""

    factor: float = 10.0
    needs_profile: bool = False

    @property
    def name(self) -> str:
        return f"InstABoost, {self.which}, x{self.factor:g}"

    @property
    def note(self) -> str:
        return (
            f"On every head, weights on the span ({self.which}) are multiplied by {self.factor:g} and renormalised "
            "(InstABoost, Guardieiro et al., arXiv 2506.13734, which tunes the factor)."
        )

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return self._answer(engine, cases, engine.every_head, key_bias(math.log(self.factor)))


@dataclass(frozen=True)
class SpotLight(_SpanRival):
    """The span gets at least a share of the attention of every head of every layer."""

    share: float = 0.2
    needs_profile: bool = False

    @property
    def name(self) -> str:
        return f"SpotLight, {self.which}"

    @property
    def note(self) -> str:
        return (
            f"On every head, where the span ({self.which}) has less than {self.share:g} of the attention its logits "
            "are raised by log(share / mass) (SpotLight, Venkateswaran and Contractor, arXiv 2505.12025; default "
            "share of the published toolkit)."
        )

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return self._answer(engine, cases, engine.every_head, target_share(self.share))


def _earliest(spans: Sequence[Sequence[TokenSpan]]) -> int:
    """First row that any span can change: rows before it do not see one."""
    return min((start for of_row in spans for start, _ in of_row), default=0)


def _complement(spans: Sequence[TokenSpan], length: int) -> list[TokenSpan]:
    """The rest of the prompt."""
    rest, position = [], 0
    for start, end in sorted(spans):
        if start > position:
            rest.append((position, start))
        position = max(position, end)
    return [*rest, (position, length)] if position < length else rest
