"""What a method is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.focus_choice import FocusChoice

BARE_SETTING = "bare"
"""The setting of a model to which nothing is done."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a method really asks for a case. The same asked twice gives the same answer, so it is asked once.

    Attributes:
        shown: The case with the passages that the model gets to see.
        setting: What is done to the model, with everything that decides it but question and passages.
    """

    shown: Case
    setting: str = BARE_SETTING

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal asks, of whatever method and cell, as long as the same passages have room in the prompt.
        Scores are not in it: a setting names what they decide.
        """
        example = self.shown.example
        passages = tuple(passage.content for passage in example.passages)
        return self.setting, example.question, passages, tuple(sorted(example.gold))


def asked(case: Case, choice: FocusChoice, *, on: str = "") -> Ask:
    """What a choice asks: the same where two settings come to the same, and what the bare model does where nothing is
    done.

    Args:
        case: The case.
        choice: What is done for it.
        on: Which heads it is done to, if not those of the profile.
    """
    done = [f"alpha={choice.alpha!r}"] if choice.alpha else []
    if choice.favoured:
        done.append(f"tau={choice.tau!r} on {sorted(choice.favoured)}")
    return Ask(case, ", ".join([*([on] if on else []), *done]) if done else BARE_SETTING)


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

    def ask(self, engine: Engine, case: Case) -> Ask:
        """What it asks for a case."""

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
