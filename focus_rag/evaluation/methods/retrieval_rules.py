"""What scores say: which passages are the best, and what a user can do with that without touching the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import Ask

PassageChoice = Literal["top 1", "all", "gold"]


def chosen_passages(case: Case, which: PassageChoice) -> list[int]:
    """Indices of the passages that a method acts on."""
    if which == "gold":
        return sorted(case.example.gold)
    if which == "all":
        return list(range(len(case.example.passages)))
    return case.example.best_first()[:1]


class _Rule(ABC):
    """The bare model, shown what a rule makes of the passages."""

    __slots__ = ()

    @abstractmethod
    def ask(self, engine: Engine, case: Case) -> Ask:
        """What it is asked."""

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer([self.ask(engine, case).shown for case in cases])


@dataclass(frozen=True, slots=True)
class TopM(_Rule):
    """Only the m best scored passages."""

    m: int = 3
    needs_profile: bool = False
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"top {self.m} only"

    @property
    def note(self) -> str:
        return f"The bare model with the {self.m} best scored passages."

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case.of_these(sorted(case.example.best_first()[: self.m])))


@dataclass(frozen=True, slots=True)
class KeepBest(_Rule):
    """Only the m best passages by scores and shared words together, as `keep_best` of a generator leaves them."""

    m: int = 8
    needs_profile: bool = False
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"keep best {self.m}"

    @property
    def note(self) -> str:
        return (
            f"The bare model with the {self.m} best passages by scores and the words that they share with the "
            f"question (keep_best={self.m})."
        )

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(replace(case, example=case.example.keep_best(self.m)))


@dataclass(frozen=True, slots=True)
class ScoreCutOff(_Rule):
    """Only passages whose score lies in the upper part of the question's own range.

    LlamaIndex's SimilarityPostprocessor has no default cut-off, and scores of different retrievers share no scale, so
    the cut is relative: half way between the worst and the best score.
    """

    share: float = 0.5
    name: str = "score cut-off"
    note: str = (
        "The bare model with the passages that score above half way between a question's worst and best (the idea of "
        "LlamaIndex's SimilarityPostprocessor, whose fixed cut-off has no default)."
    )
    needs_profile: bool = False
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(self._cut(case))

    def _cut(self, case: Case) -> Case:
        order = case.example.best_first()
        scores = [case.example.passages[index].score for index in order]
        if not scores or scores[0] is None or scores[-1] is None:
            return case
        best, worst = scores[0], scores[-1]
        sign = 1.0 if best >= worst else -1.0
        limit = sign * (worst + self.share * (best - worst))
        kept = [
            index for index, score in zip(order, scores, strict=True) if score is not None and sign * score >= limit
        ]
        return case.of_these(sorted(kept))


@dataclass(frozen=True, slots=True)
class Reorder(_Rule):
    """Best passages at both ends, worst in the middle."""

    name: str = "long-context reorder"
    note: str = (
        "The bare model with the best scored passages at both ends and the worst in the middle (LongContextReorder of "
        "LangChain and LlamaIndex, after Liu et al., arXiv 2307.03172)."
    )
    needs_profile: bool = False
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case.with_passages(ends_first(case.example.best_first())))


def ends_first(order: Sequence[int]) -> list[int]:
    """From best-first to best at the ends, as both frameworks do it: the last two to be placed are 2 and 1, and an even
    number of passages ends, an odd one begins with the best.
    """
    placed: list[int] = []
    for number, index in enumerate(reversed(order)):
        placed = [*placed, index] if number % 2 else [index, *placed]
    return placed
