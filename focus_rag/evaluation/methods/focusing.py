"""Focus directions (Zhu et al., arXiv 2503.23306) at a fixed alpha, at alpha by retrieval, and on random heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods.method import BARE_SETTING, Ask
from focus_rag.evaluation.methods.retrieval_rules import ScoreCutOff, TopM
from focus_rag.profile import FocusProfile, HeadEntry


def _focused(case: Case, alpha: float) -> Ask:
    """Fixed and auto ask the same where their alphas are equal, and what the bare model does where they are 0."""
    return Ask(case, f"alpha={alpha!r}" if alpha else BARE_SETTING)


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
        return _focused(case, float(self.alpha))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha=self.alpha)


@dataclass(frozen=True, slots=True)
class Auto:
    """Alpha by the profile's policy, from the number of passages and their scores."""

    name: str = "auto"
    note: str = "Focus directions with alpha set for each question from its retrieval, by the profile's policy."
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        return _focused(case, engine.auto_alpha(case))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha="auto")


@dataclass(frozen=True, slots=True)
class ThenAuto:
    """Alpha by the profile's policy, over the passages that a rule on their scores leaves."""

    rule: TopM | ScoreCutOff
    needs_profile: bool = True
    oracle: bool = False

    @property
    def name(self) -> str:
        return f"{self.rule.name}, then auto"

    @property
    def note(self) -> str:
        return f"What '{self.rule.name}' leaves, with alpha by the profile's policy for as many passages."

    def ask(self, engine: Engine, case: Case) -> Ask:
        shown = self.rule.ask(engine, case).shown
        return _focused(shown, engine.auto_alpha(shown))

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer([self.rule.ask(engine, case).shown for case in cases], alpha="auto")


@dataclass(frozen=True, slots=True)
class RandomHeads:
    """Control: as many heads, the same lengths of the vectors, no meaning."""

    seed: int = 0
    name: str = "random heads"
    note: str = (
        "Control: as many heads drawn at random outside the profile (where there are enough), each with a random direction "
        "as long as the trained one, alpha by the profile's policy."
    )
    needs_profile: bool = True
    oracle: bool = False

    def ask(self, engine: Engine, case: Case) -> Ask:
        alpha = engine.auto_alpha(case)
        return Ask(case, f"{self.name}, alpha={alpha!r}" if alpha else BARE_SETTING)

    def answer(self, engine: Engine, cases: Sequence[Case]) -> list[Answered]:
        return engine.answer(cases, alpha="auto", profile=_random_profile(engine, self.seed))


_PROFILES: dict[tuple[int, int], tuple[FocusProfile, FocusProfile]] = {}


def _random_profile(engine: Engine, seed: int) -> FocusProfile:
    profile = engine.profile
    if profile is None:
        raise ValueError("random heads need a profile to be compared with")
    # The engine keeps one generator for each profile object, so the control is made once.
    known = _PROFILES.get((id(profile), seed))
    if known is not None and known[0] is profile:
        return known[1]
    generator = torch.Generator().manual_seed(seed)
    own, every = set(engine.heads), engine.every_head
    outside = [pair for pair in every if pair not in own]
    candidates = outside if len(outside) >= len(own) else every
    picked = [candidates[i] for i in torch.randperm(len(candidates), generator=generator)[: len(own)].tolist()]
    drawn = torch.randn(profile.directions.shape, generator=generator)
    drawn *= profile.directions.norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    control = profile.replace(
        heads=[HeadEntry(layer=layer, head=head) for layer, head in picked], directions=drawn, key_directions=None
    )
    _PROFILES[id(profile), seed] = (profile, control)
    return control
