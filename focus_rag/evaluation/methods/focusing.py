"""Focus (Zhu et al., arXiv 2503.23306) as a profile sets it for each request, its directions alone, and on random
heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import Ask, asked
from focus_rag.evaluation.methods.retrieval_rules import KeepBest, ScoreCutOff, TopM
from focus_rag.evaluation.results import DIRECTIONS
from focus_rag.profile import FocusProfile, HeadEntry


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same alpha for every question; below 0 it distracts."""

    alpha: float
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"alpha={self.alpha:g}"

    @property
    def note(self) -> str:
        return f"Focus directions at alpha {self.alpha:g} for every question (Zhu et al., arXiv 2503.23306)."

    def ask(self, engine: Engine, case: Case) -> Ask:
        return asked(case, engine.choice(case, alpha=float(self.alpha)))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha=self.alpha)


@dataclass(frozen=True, slots=True)
class Auto:
    """What a generator does by itself: split softmax where passages can be told apart, else directions."""

    name: str = "auto"
    note: str = (
        "What a profile does by itself: split softmax on the best scored passages where it was fitted and scores "
        "tell them apart, else focus directions with alpha set for each question from its retrieval."
    )
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return asked(case, engine.choice(case))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha="auto", split="auto")


@dataclass(frozen=True, slots=True)
class Directions:
    """Alpha by the profile's policy, from the number of passages and their scores; its split left out."""

    name: str = DIRECTIONS
    note: str = "Focus directions alone, with alpha set for each question from its retrieval by the profile's policy."
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return asked(case, engine.choice(case, split="off"))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha="auto")


@dataclass(frozen=True, slots=True)
class ThenAuto:
    """What the profile does by itself, over the passages that a rule leaves."""

    rule: TopM | KeepBest | ScoreCutOff
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"{self.rule.name}, then auto"

    @property
    def note(self) -> str:
        return f"What '{self.rule.name}' leaves, with what the profile does by itself to as many passages."

    def ask(self, engine: Engine, case: Case) -> Ask:
        shown = self.rule.ask(engine, case).shown
        return asked(shown, engine.choice(shown))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer([self.rule.ask(engine, case).shown for case in cases], alpha="auto", split="auto")


@dataclass(frozen=True, slots=True)
class RandomHeads:
    """Control: as many heads, the same lengths of the vectors, no meaning."""

    seed: int = 0
    name: str = "random heads"
    note: str = (
        "Control: what the profile does by itself, done to as many heads drawn at random outside of it (where there "
        "are enough), each with a random direction as long as the trained one."
    )
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return asked(case, engine.choice(case), on=self.name)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        # The engine keeps one generator for each profile object, so the control is made once.
        control = engine.once((type(self), self.seed), lambda: _random_profile(engine, self.seed))
        return engine.answer(cases, alpha="auto", split="auto", profile=control)


def _random_profile(engine: Engine, seed: int) -> FocusProfile:
    profile = engine.profile
    if profile is None:
        raise InvalidInputError("Random heads need a profile to be compared with.")
    generator = torch.Generator().manual_seed(seed)
    own, every = set(engine.heads), engine.every_head
    outside = [pair for pair in every if pair not in own]
    candidates = outside if len(outside) >= len(own) else every
    picked = [candidates[i] for i in torch.randperm(len(candidates), generator=generator)[: len(own)].tolist()]
    drawn = torch.randn(profile.directions.shape, generator=generator)
    drawn *= profile.directions.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    heads = [HeadEntry(layer=layer, head=head) for layer, head in picked]
    return profile.replace(heads=heads, directions=drawn, key_directions=None)
