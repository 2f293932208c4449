"""Rank passages by the attention of the contextual heads, then answer from the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask


@dataclass(frozen=True, slots=True)
class AttentionRerank:
    """One forward pass over all passages to rank them, a second one over the best to answer."""

    m: int = 3
    name: str = "attention rerank"
    note: str = (
        "A first pass ranks the passages by the contextual heads' attention at the end of the prompt, the bare model "
        "answers from the 3 best (after QRHead, Zhang et al., arXiv 2506.09944, with our heads)."
    )
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case, self.name if len(case.example.passages) > self.m else BARE_SETTING)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        orders = engine.rank_by_attention(cases)
        return engine.answer(
            [case.with_passages(sorted(order[: self.m])) for case, order in zip(cases, orders, strict=True)]
        )
