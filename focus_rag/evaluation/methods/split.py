"""Split softmax (Zhu et al., arXiv 2503.23306): on the gold passages the upper anchor of attention steering, on the
best scored ones what a user can do with the same heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from focus_rag.attention.splitting import split_softmax
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Batch, Engine
from focus_rag.evaluation.methods.method import Ask, asked
from focus_rag.score_split import ScoreSplit

_PUBLISHED_TAU = 0.1


@dataclass(frozen=True, slots=True)
class GoldSplit:
    """The gold passages get mass `p ** tau` on the contextual heads, in every row after them."""

    tau: float = _PUBLISHED_TAU
    needs_profile: bool = True
    oracle: bool = True

    @property
    def name(self) -> str:
        return f"split softmax, gold{'' if self.tau == _PUBLISHED_TAU else f', tau={self.tau:g}'}"

    @property
    def note(self) -> str:
        return (
            f"Contextual heads give the gold passages the mass p ** {self.tau:g} (split softmax, Zhu et al., arXiv "
            f"2503.23306; their tau is {_PUBLISHED_TAU:g})."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case, self.name)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        def intervene(batch: Batch) -> AbstractContextManager[Any]:
            spans = batch.spans_of(lambda case: sorted(case.example.gold))
            if not any(spans):
                return nullcontext()
            return split_softmax(engine.model, engine.heads, spans, batch.length, tau=self.tau)

        return engine.answer(cases, intervene=intervene, edits_weights=True)


@dataclass(frozen=True, slots=True)
class FixedSplit:
    """The same split on the best scored passages for every question, without directions."""

    split: ScoreSplit
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"split by score, reach={self.split.reach:g}, tau={self.split.tau:g}"

    @property
    def note(self) -> str:
        return (
            f"Contextual heads give the passages within {self.split.reach:g} of the range of scores below the best "
            f"one the mass p ** {self.split.tau:g}, from where the passages end (split softmax with scores in the "
            "place of the gold flags)."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return asked(case, engine.choice(case, alpha=0.0, split=self.split))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, split=self.split)
