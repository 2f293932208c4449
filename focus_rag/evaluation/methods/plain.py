"""The bare model: with all passages, with the gold ones alone, and with none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import Ask


@dataclass(frozen=True, slots=True)
class Bare:
    """The reference of all comparisons."""

    name: str = "bare"
    note: str = "The model as it is, with every passage."
    needs_profile: bool = False
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases)


@dataclass(frozen=True, slots=True)
class GoldOnly:
    """What perfect retrieval would give. Where gold is missing there is nothing to keep, and every passage stays."""

    name: str = "gold only"
    note: str = "The model as it is, with the gold passages alone: what perfect retrieval would give."
    needs_profile: bool = False
    oracle: bool = True

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case.with_passages(sorted(case.example.gold)) if case.example.gold else case)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer([self.ask(engine, case).shown for case in cases])


@dataclass(frozen=True, slots=True)
class ClosedBook:
    """What the model knows by itself."""

    name: str = "closed book"
    note: str = "The model as it is, without passages."
    needs_profile: bool = False
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return Ask(case.with_passages([]))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer([self.ask(engine, case).shown for case in cases])
