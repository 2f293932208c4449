"""The second half of a fit: how much of a profile's directions, and how far to lean on scores, for which retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, get_args

import torch

from focus_rag.attention.steering import focus
from focus_rag.examples import Example
from focus_rag.fitting.alpha_fitting import fit_policy, signal_quality
from focus_rag.fitting.alpha_sweep import Sweep
from focus_rag.fitting.asking import shown_passages
from focus_rag.fitting.context import FitContext
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.head_scoring import PARTS, example_masses
from focus_rag.fitting.passage_order import order_figures, order_warning
from focus_rag.fitting.split_fitting import Unsplit, by_words_alone, finds_gold, fit_split
from focus_rag.fitting.sweep_cells import SweepCell, cells_of, climb
from focus_rag.noise import signal_of
from focus_rag.passage_ranking import Signal
from focus_rag.profile import FocusProfile
from focus_rag.score_split import ScoreSplit

_BY: Final[Mapping[Signal, str]] = {"scores": "", "words": "-words", "both": "-both"}
"""How the names of stored steps tell splits apart."""


def fit_alpha_and_split(fit: FitContext, profile: FocusProfile) -> tuple[FocusProfile, dict[str, Any]]:
    """The profile with its policy for alpha and its split, and what was measured.

    Args:
        fit: The fit.
        profile: Heads and directions; its own policy and split are not looked at.
    """
    return _AlphaAndSplitFit(fit).run(profile)


class _AlphaAndSplitFit:
    """The phases in order, each built from steps that are stored."""

    def __init__(self, fit: FitContext) -> None:
        self.fit = fit

    def run(self, profile: FocusProfile) -> tuple[FocusProfile, dict[str, Any]]:
        """All phases."""
        activation = self.fit.work.step("activation", lambda: self._activation(profile))
        cells, warnings = cells_of(
            self.fit.dev, self.fit.pool, self.fit.counts, self.fit.settings.noises, self.fit.enough
        )
        sweeps = climb(
            cells,
            self._bounded_alphas(activation),
            partial(self._swept, profile),
            partial(self.fit.progress, "fitting alpha"),
        )
        fitted = fit_policy(sweeps)
        profile = profile.replace(policy=fitted.policy)
        present = [(cell, sweep) for cell, sweep in zip(cells, sweeps, strict=True) if not sweep.gold_missing]
        order = self._order(profile, *next(one for one in present if self._is_headline(one[0])))
        # A policy that leaves every request as it is does no harm in any order, however few questions say so.
        harm = order_warning(order, self.fit.settings.order_margin) if fitted.policy.focuses else None
        if harm is not None:
            fitted = fit_policy(sweeps, needs_order=True)
            profile = profile.replace(policy=fitted.policy)
        split, leaning = self._split(profile, cells, sweeps)
        profile = profile.replace(split=split)
        figures = {
            "activation": activation,
            "sweeps": [_sweep_figures(sweep) for sweep in sweeps],
            "cells": [
                self._with_references(found, cell, sweep, profile)
                for found, (cell, sweep) in zip(fitted.cells, present, strict=True)
            ],
            "best_single": fitted.best_single,
            "overall": fitted.overall,
            "order": order,
            "split": leaning,
            "warnings": warnings if harm is None else [*warnings, harm],
        }
        return profile, figures

    def _is_headline(self, cell: SweepCell) -> bool:
        """Whether it is the largest cell as retrieved."""
        return (cell.count, cell.noise, cell.gold_missing) == (self.fit.counts[-1], 1.0, False)

    def _swept(self, profile: FocusProfile, cell: SweepCell, alpha: float) -> list[float]:
        return self.fit.work.step(  # type: ignore[no-any-return]
            f"sweep-{cell.name}-{alpha:g}",
            lambda: self.fit.answers.grades(profile, cell.questions, alpha, gold_missing=cell.gold_missing),
        )

    def _order(self, profile: FocusProfile, cell: SweepCell, sweep: Sweep) -> dict[str, Any]:
        """What focus brings in a cell's own order, where it was asked already, and in a random one."""
        n = self.fit.settings.order_questions
        retrieved = sweep.column(0.0)[:n], self._auto(profile, cell, sweep)[:n]

        def grades(shown: Sequence[Example], is_focused: bool) -> list[float]:
            return self.fit.answers.grades(*((profile, shown, profile.policy) if is_focused else (None, shown, 0.0)))

        return self.fit.work.step(  # type: ignore[no-any-return]
            "order", lambda: order_figures(cell.questions[:n], retrieved, self.fit.settings.seed, grades)
        )

    def _split(
        self, profile: FocusProfile, cells: Sequence[SweepCell], sweeps: Sequence[Sweep]
    ) -> tuple[ScoreSplit | None, dict[str, Any]]:
        """Whether to lean on the best passages, with what was measured, and what the choice does where scores say
        nothing.
        """
        settings, grades = self.fit.settings, partial(self._leaning, profile)
        unsplit = self._unsplit(profile, cells, sweeps)
        best, tried = fit_split(
            unsplit,
            settings.split_reaches,
            settings.split_taus,
            grades,
            partial(self.fit.progress, "fitting the split"),
        )
        figures: dict[str, Any] = {"tried": [one.to_dict(unsplit) for one in tried], "chosen": None}
        if best is None:
            return None, figures
        split = best.split
        headline = next(one for one in unsplit if self._is_headline(one.cell))
        figures["finds_gold"] = {
            by: finds_gold(split.model_copy(update={"by": by}), headline.cell.questions).to_dict()
            for by in get_args(Signal)
        }
        if split.by != "words":
            shuffled = partial(self._unreliable, profile, split, headline)
            figures["shuffled_scores"] = self.fit.work.step(f"split-shuffled{_BY[split.by]}", shuffled)
            unscored = self._unsplit(profile, [cell.without_scores() for cell in cells], sweeps)
            alone = by_words_alone(split, unscored, grades)
            figures["without_scores"] = alone.to_dict(unscored)
            split = alone.split if alone.is_worth_it else split
        return split, {**figures, "chosen": split.model_dump()}

    def _unsplit(self, profile: FocusProfile, cells: Sequence[SweepCell], sweeps: Sequence[Sweep]) -> list[Unsplit]:
        return [
            Unsplit(cell, sweep.column(0.0), self._auto(profile, cell, sweep))
            for cell, sweep in zip(cells, sweeps, strict=True)
        ]

    def _leaning(self, profile: FocusProfile, split: ScoreSplit, cell: SweepCell) -> list[float]:
        return self.fit.work.step(  # type: ignore[no-any-return]
            f"split-{cell.name}-{split.reach:g}-{split.tau:g}{_BY[split.by if cell.has_scores else 'words']}",
            lambda: self.fit.answers.grades(
                profile.replace(split=split), cell.questions, "auto", gold_missing=cell.gold_missing, split="auto"
            ),
        )

    def _unreliable(self, profile: FocusProfile, split: ScoreSplit, one: Unsplit) -> dict[str, Any]:
        """A cell once more with its scores dealt out anew."""
        dealt = [each.with_shuffled_scores(self.fit.settings.seed) for each in one.cell.questions]
        found = self.fit.answers.grades(profile.replace(split=split), dealt, "auto", split="auto")
        gain = [after - before for before, after in zip(one.bare, found, strict=True)]
        return {
            name: Estimate.of(values).to_dict()
            for name, values in (("bare", one.bare), ("split", found), ("gain", gain))
        }

    def _auto(self, profile: FocusProfile, cell: SweepCell, sweep: Sweep) -> list[float]:
        """Grades of a cell's questions under the policy, read off the sweep where it chose alphas of the grid."""
        questions = cell.questions
        signals = [signal_of(shown_passages(one, cell.gold_missing), score_kind=one.score_kind) for one in questions]
        alphas = [profile.policy.choose(signal).alpha for signal in signals]
        if set(alphas) <= set(sweep.alphas):
            return [sweep.at(place, alpha) for place, alpha in enumerate(alphas)]
        by_order = "-by-order" if getattr(profile.policy, "needs_order", False) else ""
        return self.fit.work.step(  # type: ignore[no-any-return]
            f"auto-{cell.name}{by_order}",
            lambda: self.fit.answers.grades(profile, questions, profile.policy, gold_missing=cell.gold_missing),
        )

    def _activation(self, profile: FocusProfile) -> list[dict[str, float]]:
        """Where the steered heads look at each alpha, all of them steered at once, on dev examples."""
        examples = self.fit.shown_sequences
        heads = profile.head_pairs
        rows = []
        alphas = (0.0, *self.fit.settings.alphas)
        for done, alpha in enumerate(alphas, start=1):
            masses = []
            for one in examples:
                with focus(self.fit.model, profile, alpha, passages_at=one.passages_at):
                    masses.append(
                        example_masses(self.fit.model, one, sink_tokens=self.fit.settings.sink_tokens, heads=heads)
                    )
            mean = torch.stack(masses).mean(dim=(0, 1))
            rows.append({"alpha": alpha, **{part: float(mass) for part, mass in zip(PARTS, mean, strict=True)}})
            self.fit.progress("measuring activation", done, len(alphas))
        return rows

    def _bounded_alphas(self, activation: Sequence[dict[str, float]]) -> list[float]:
        """The clamp: no alpha beyond the one at which the gold passage gets most attention."""
        most = max(activation, key=lambda row: row["gold"])["alpha"]
        return [alpha for alpha in self.fit.settings.alphas if alpha <= most] or list(self.fit.settings.alphas[:1])

    def _with_references(
        self, found: dict[str, Any], cell: SweepCell, sweep: Sweep, profile: FocusProfile
    ) -> dict[str, Any]:
        """A cell with what the policy reaches, alpha chosen for each question, and with the gold passages alone."""
        questions, auto = cell.questions, self._auto(profile, cell, sweep)
        known = self.fit.answers.gold_only
        return {
            **found,
            "auto": Estimate.of(auto).to_dict(),
            "auto_gain": Estimate.of(
                [after - row[0] for after, row in zip(auto, sweep.quality, strict=True)]
            ).to_dict(),
            "gold_only": Estimate.of([known[one.key] for one in questions]).to_dict(),
            "signals": signal_quality(sweep, profile.policy, questions, self.fit.settings.seed),
        }


def _sweep_figures(sweep: Sweep) -> dict[str, Any]:
    return {
        "count": sweep.count,
        "noise": sweep.noise,
        "gold_missing": sweep.gold_missing,
        "alphas": list(sweep.alphas),
        "quality": [Estimate.of(sweep.column(alpha)).to_dict() for alpha in sweep.alphas],
        "gain": [sweep.gain(alpha).to_dict() for alpha in sweep.alphas],
    }
