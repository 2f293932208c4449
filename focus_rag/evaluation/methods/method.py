"""What a method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine


class Method(Protocol):
    """A way to answer. Everything it knows of the gold passages it declares by `oracle`."""

    @property
    def name(self) -> str:
        """As in tables; unique."""

    @property
    def note(self) -> str:
        """What it does with which settings, and who proposed it, in a sentence or two."""

    @property
    def needs_profile(self) -> bool:
        """Whether it works on contextual heads or focus directions."""

    @property
    def oracle(self) -> bool:
        """Whether it is told which passages are gold, which no user's system knows."""

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        """Answer one batch, in order."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A method with one number to choose; the candidate that answers best on dev questions stands for it.

    Attributes:
        name: As in tables.
        candidates: One method for each value.
    """

    name: str
    candidates: tuple[Method, ...]
