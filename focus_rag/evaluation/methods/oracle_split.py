"""Split softmax on the gold passages (Zhu et al., arXiv 2503.23306): the upper anchor of attention steering."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Batch, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask
from focus_rag.split_softmax import split_softmax


@dataclass(frozen=True, slots=True)
class OracleSplit:
    """The gold passages get mass `p ** tau` on the contextual heads."""

    tau: float = 0.1
    needs_profile: bool = True
    oracle: bool = True

    @property
    def name(self) -> str:
        return "split softmax, gold" if self.tau == OracleSplit().tau else f"split softmax, gold, tau={self.tau:g}"

    @property
    def note(self) -> str:
        return (
            f"Contextual heads give the gold passages the mass p ** {self.tau:g} (split softmax, Zhu et al., arXiv 2503.23306; "
            "their tau is 0.1)."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case, self.name if case.example.gold else BARE_SETTING)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        def intervene(batch: Batch) -> AbstractContextManager[Any]:
            spans = batch.spans_of(lambda case: sorted(case.example.gold))
            if not any(spans):
                return nullcontext()
            return split_softmax(engine.model, engine.heads, spans, batch.length, tau=self.tau)

        return engine.answer(cases, intervene=intervene, edits_weights=True)
