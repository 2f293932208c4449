"""The first half of a fit: find the model's contextual heads, learn their directions, and choose how many of them and
by which loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from statistics import median
from typing import Any

import torch

from focus_rag.attention.turning import Turning
from focus_rag.errors import UnsupportedModelError
from focus_rag.examples import Example
from focus_rag.fitting.calm_examples import calmed
from focus_rag.fitting.context import FitContext
from focus_rag.fitting.direction_training import LossKind, summary, train_directions
from focus_rag.fitting.estimate import Estimate
from focus_rag.fitting.head_scoring import Head, HeadScores, score_heads
from focus_rag.fitting.polishing import polish_directions
from focus_rag.fitting.recorded_heads import Recording, record_examples
from focus_rag.fitting.teacher_forcing import TeacherForced
from focus_rag.fitting.variants import Variant, choose_variant
from focus_rag.model_layout import ModelLayout, Site
from focus_rag.profile import FocusProfile, HeadEntry


def fit_directions(fit: FitContext) -> tuple[FocusProfile, dict[str, Any]]:
    """Heads and directions of a profile whose alpha is yet to be fitted, and what was measured.

    Raises:
        UnsupportedModelError: The model allows none of the sites of the settings.
    """
    return _DirectionFit(fit).run()


class _DirectionFit:
    """The phases in order, each built from steps that are stored."""

    def __init__(self, fit: FitContext) -> None:
        self.fit = fit
        self.layout = ModelLayout.of(fit.model)
        self.site = self._site()
        self.choice_cells = self._choice_cells(fit.choice_counts)
        self._recorded: tuple[Recording, Recording] | None = None

    def run(self) -> tuple[FocusProfile, dict[str, Any]]:
        """All phases."""
        scores = HeadScores.from_dict(self.fit.work.step("scores", self._scores))
        ranking = scores.ranking()
        counts = self._head_counts()
        contextual, control = ranking[: counts[-1]], self._control(ranking, counts[-1])
        trainings = {
            loss: self.fit.work.step(f"directions-{loss}", partial(self._train, loss, [*contextual, *control]))
            for loss in self.fit.settings.losses
        }
        chosen, choice = self._choose(trainings, contextual, control, counts)
        profile = self._profile(chosen)
        profile = profile.replace(
            heads=[one.model_copy(update={"score": scores.of((one.layer, one.head))}) for one in profile.heads]
        )
        figures = {
            "loss": chosen.loss,
            "scores": scores.to_dict(),
            "trainings": {loss: found["summary"] for loss, found in trainings.items()},
            "choice": choice,
        }
        return profile, figures

    def _choice_cells(self, counts: Sequence[int]) -> list[tuple[int, float, list[Example]]]:
        """The questions of the choice of heads at each passage count, and once more at the largest, calmed where that
        can be done.
        """
        questions = [one for one in self.fit.dev if len(one.passages) >= counts[-1]][
            : self.fit.settings.choice_questions
        ]
        cells = [(count, 1.0, [one.at_count(count) for one in questions]) for count in counts]
        calmest = min(self.fit.settings.noises)
        calm = [
            one for example in questions if (one := calmed(example, counts[-1], calmest, self.fit.pool)) is not None
        ]
        if calmest < 1 and len(calm) == len(questions):
            cells.append((counts[-1], calmest, calm))
        return cells

    def _site(self) -> Site:
        for site in self.fit.settings.sites:
            try:
                self.layout.require_site(site)
            except UnsupportedModelError:
                continue
            return site
        raise UnsupportedModelError(
            f"{self.layout.family!r} allows none of the sites {', '.join(self.fit.settings.sites)}; add 'post_rope' "
            "to `sites`."
        )

    @cached_property
    def passages_at(self) -> int | None:
        """Where passages begin in the prompts of the fit, which directions at site `post_rope` are tied to."""
        if self.site != "post_rope":
            return None
        try:
            Turning.of(self.fit.model)
        except UnsupportedModelError:
            return None
        return int(median(one.passages_at for one in self.fit.training_sequences(slice(None))))

    def _head_counts(self) -> list[int]:
        half = max(len(self.layout.layers) * self.layout.query_heads // 2, 1)
        return sorted({count for count in self.fit.settings.head_counts if 1 <= count <= half}) or [1]

    def _control(self, ranking: Sequence[Head], count: int) -> list[Head]:
        """Random heads from outside the contextual ones: what steering any heads at all would give."""
        return random.Random(self.fit.settings.seed).sample(list(ranking[count:]), min(count, len(ranking) - count))

    def _mean_grades(self, profile: FocusProfile | None, alpha: float) -> list[float]:
        """Grade of each question of the choice, averaged over its cells."""
        return _means([self.fit.answers.grades(profile, questions, alpha) for _, _, questions in self.choice_cells])

    def _scores(self) -> dict[str, Any]:
        laid_out = self.fit.training_sequences(slice(self.fit.settings.score_examples))
        return score_heads(
            self.fit.model,
            laid_out,
            sink_tokens=self.fit.settings.sink_tokens,
            progress=lambda done: self.fit.progress("scoring heads", done, len(laid_out)),
        ).to_dict()

    def _train(self, loss: LossKind, heads: Sequence[Head]) -> dict[str, Any]:
        training, held_out = self._recordings(heads)
        settings = self.fit.settings.training.model_copy(update={"loss": loss, "seed": self.fit.settings.seed})
        trained = train_directions(
            training,
            held_out,
            settings,
            progress=lambda done: self.fit.progress(f"training directions ({loss})", done, settings.epochs),
        )
        return {
            "heads": [list(head) for head in trained.heads],
            "directions": trained.directions.tolist(),
            "before": trained.before.tolist(),
            "after": trained.after.tolist(),
            "summary": summary(trained),
        }

    def _recordings(self, heads: Sequence[Head]) -> tuple[Recording, Recording]:
        """Examples to train on and others to stop by, recorded once for all losses."""
        if self._recorded is None:
            held_out = max(len(self.fit.train) // 5, 1)
            parts = [self.fit.training_sequences(part) for part in (slice(held_out, None), slice(held_out))]
            total = sum(map(len, parts))

            def record(part: Sequence[TeacherForced], before: int) -> Recording:
                def progress(done: int) -> None:
                    self.fit.progress("recording", before + done, total)

                return record_examples(
                    self.fit.model, part, heads, self.site, passages_at=self.passages_at, progress=progress
                )

            self._recorded = record(parts[0], 0), record(parts[1], len(parts[0]))
        return self._recorded

    def _choose(
        self,
        trainings: dict[LossKind, Any],
        contextual: Sequence[Head],
        control: Sequence[Head],
        counts: Sequence[int],
    ) -> tuple[Variant, dict[str, Any]]:
        """Number of heads, loss and polish by answer quality, with what knowing the gold passage would bring at the
        same heads.
        """
        bare = self.fit.work.step("choice-bare", lambda: self._mean_grades(None, 0.0))

        def grades(variant: Variant, alpha: float) -> list[float]:
            compute = partial(self._mean_grades, self._profile(variant), alpha)
            return self.fit.work.step(f"choice-{variant.name}-{alpha:g}", compute)  # type: ignore[no-any-return]

        best, rows = choose_variant(
            trainings,
            contextual,
            control,
            counts,
            self.fit.settings.choice_alphas,
            bare=bare,
            grades=grades,
            polished=self._polished if self.fit.settings.polish.steps > 0 else None,
            progress=partial(self.fit.progress, "choosing heads and loss"),
        )
        oracles = {
            tau: self.fit.work.step(f"choice-oracle-{len(best.heads)}-{tau:g}", partial(self._oracle, best.heads, tau))
            for tau in self.fit.settings.oracle_taus
        }
        return best, {
            "cells": [[count, noise] for count, noise, _ in self.choice_cells],
            "bare": Estimate.of(bare).to_dict(),
            "table": [row.to_dict() for row in rows],
            "oracle": {
                "heads": len(best.heads),
                "table": [
                    {
                        "tau": tau,
                        "quality": Estimate.of(oracle).to_dict(),
                        "gain": Estimate.of(
                            [after - before for after, before in zip(oracle, bare, strict=True)]
                        ).to_dict(),
                    }
                    for tau, oracle in oracles.items()
                ],
            },
            "chosen": best.name,
        }

    def _oracle(self, heads: Sequence[Head], tau: float) -> list[float]:
        return _means([self.fit.answers.oracle_grades(heads, questions, tau) for _, _, questions in self.choice_cells])

    def _polished(self, variant: Variant) -> Variant:
        name = f"{variant.name}-polished"

        def compute() -> Any:
            settings = self.fit.settings.polish
            return polish_directions(
                self.fit.model,
                self._profile(variant),
                self.fit.training_sequences(slice(None), "all"),
                settings.model_copy(update={"seed": self.fit.settings.seed}),
                progress=lambda done: self.fit.progress("polishing directions", done, settings.steps),
            ).tolist()

        return replace(variant, name=name, directions=torch.tensor(self.fit.work.step(f"directions-{name}", compute)))

    def _profile(self, variant: Variant) -> FocusProfile:
        entries = [HeadEntry(layer=layer, head=head) for layer, head in variant.heads]
        return FocusProfile(
            self.fit.fingerprint, entries, variant.directions, site=self.site, passages_at=self.passages_at
        )


def _means(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(grades) / len(grades) for grades in zip(*columns, strict=True)]
