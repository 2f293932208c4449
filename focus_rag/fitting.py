"""Fit a profile to a model: find its contextual heads, learn their directions, choose alpha, and write down what was measured.

Every step stores its result before the next begins, under a name made from all that it depends on. A run that was killed
goes on where it stopped and ends with the profile of an uninterrupted run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import focus_rag
from focus_rag.alpha_fitting import (
    Estimate,
    Sweep,
    examples_at,
    fit_policy,
    measure_quality,
    score_noise,
    signal_quality,
    without_gold,
)
from focus_rag.direction_training import LossKind, summary, train_directions
from focus_rag.errors import InvalidInputError, UnsupportedModelError
from focus_rag.examples import Example, ExampleSet, split_examples
from focus_rag.fit_choice import Row, Variant, variant_of
from focus_rag.fit_report import write_report
from focus_rag.fit_settings import FitSettings
from focus_rag.fit_steps import FitSteps, fit_digest
from focus_rag.generator import FocusGenerator
from focus_rag.head_scoring import PARTS, Head, HeadScores, example_masses, score_heads
from focus_rag.model_layout import ModelLayout, Site
from focus_rag.noise import signal_of
from focus_rag.polishing import polish_directions
from focus_rag.profile import Fingerprint, FocusProfile, HeadEntry
from focus_rag.recorded_heads import record_examples
from focus_rag.steering import focus
from focus_rag.teacher_forcing import Rows, TeacherForced, teacher_forced_all, window_of

Progress = Callable[[str, int, int], None]
"""Called with the phase, steps done and steps in all."""


def fit_profile(
    model: nn.Module,
    tokenizer: Any,
    examples: ExampleSet | Sequence[Example],
    out: str | Path,
    settings: FitSettings | None = None,
    *,
    model_id: str | None = None,
    progress: Progress | None = None,
) -> FocusProfile:
    """Fit a profile and save it with its report.

    Args:
        model: A Hugging Face causal LM.
        tokenizer: Its fast tokenizer.
        examples: Labelled questions. They are split into training and dev by question; keep your test questions apart.
        out: Folder of the profile. Intermediate results live in it until the fit is done.
        settings: How much to measure.
        model_id: Name of the model in the profile.
        progress: Told how far each phase is.

    Returns:
        The profile, as saved in `out`.

    Raises:
        InvalidInputError: Too few usable examples, or a model that answers none of them from the gold passage alone.
        UnsupportedModelError: The model cannot be steered.
    """
    settings = settings or FitSettings()
    given = examples if isinstance(examples, ExampleSet) else ExampleSet(tuple(examples), {}, "the examples")
    usable = given.require(settings.min_examples)
    fingerprint = Fingerprint.of(model, tokenizer, model_id=model_id)
    digest = fit_digest(model, fingerprint, usable, settings)
    done = _finished(Path(out), digest)
    if done is not None:
        return done
    work = FitSteps(Path(out), digest)
    fit = _Fit(model, tokenizer, usable, settings, fingerprint, work, progress or (lambda _phase, _done, _total: None))
    profile, figures = fit.run()
    figures["examples"] = {**given.describe(), "train": len(fit.train), "dev": len(fit.dev)}
    provenance = {
        "source": "focus-rag fit",
        "version": focus_rag.__version__,
        "digest": digest,
        "settings": settings.model_dump(mode="json"),
        "examples": figures["examples"],
    }
    profile = profile.replace(provenance=provenance, report=_in_brief(figures))
    write_report(Path(out), profile, figures)
    profile.save(out)
    if not settings.keep_work:
        work.remove()
    return profile


class _Fit:
    """One fit: the phases in order, each built from steps that are stored."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        examples: Sequence[Example],
        settings: FitSettings,
        fingerprint: Fingerprint,
        work: FitSteps,
        progress: Progress,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.fingerprint, self.work, self.progress = fingerprint, work, progress
        train, dev = split_examples(examples, dev_share=settings.dev_share)
        self.train, self.dev = train[: settings.train_examples], dev[: settings.dev_questions]
        self.layout = ModelLayout.of(model)
        self.site = self._site()
        widest = max(len(one.passages) for one in self.dev)
        self.counts = sorted(
            {count for count in settings.counts if len(examples_at(self.dev, count)) >= settings.min_examples // 2}
        )
        self.choice_counts = sorted({min(count, widest) for count in settings.choice_counts})
        if not self.counts:
            self.counts = [widest]

    def run(self) -> tuple[FocusProfile, dict[str, Any]]:
        """All phases."""
        self._refuse_silent_model()
        scores = HeadScores.from_dict(self.work.step("scores", self._scores))
        ranking = scores.ranking()
        counts = self._head_counts()
        contextual, control = ranking[: counts[-1]], self._control(ranking, counts[-1])
        trainings = {
            loss: self.work.step(f"directions-{loss}", partial(self._train, loss, [*contextual, *control]))
            for loss in self.settings.losses
        }
        chosen, choice = self._choose(trainings, contextual, control, counts)
        profile = FocusProfile(
            self.fingerprint,
            [HeadEntry(layer=layer, head=head, score=scores.of((layer, head))) for layer, head in chosen.heads],
            chosen.directions,
            site=self.site,
        )
        activation = self.work.step("activation", lambda: self._activation(profile))
        sweeps = self._sweeps(profile, self._bounded_alphas(activation))
        fit = fit_policy(sweeps)
        present = [sweep for sweep in sweeps if not sweep.gold_missing]
        profile = profile.replace(policy=fit.policy)
        figures = {
            "site": self.site,
            "loss": chosen.loss,
            "heads": [[layer, head] for layer, head in chosen.heads],
            "scores": scores.to_dict(),
            "trainings": {loss: found["summary"] for loss, found in trainings.items()},
            "choice": choice,
            "activation": activation,
            "sweeps": [_sweep_figures(sweep) for sweep in sweeps],
            "cells": [
                self._with_references(cell, sweep, profile) for cell, sweep in zip(fit.cells, present, strict=True)
            ],
            "best_single": fit.best_single,
        }
        return profile, figures

    def _site(self) -> Site:
        for site in self.settings.sites:
            try:
                self.layout.require_site(site)
            except UnsupportedModelError:
                continue
            return site
        raise UnsupportedModelError(
            f"{self.layout.family!r} allows none of the sites {', '.join(self.settings.sites)}; add 'post_rope' to `sites`."
        )

    def _head_counts(self) -> list[int]:
        half = max(len(self.layout.layers) * self.layout.query_heads // 2, 1)
        return sorted({count for count in self.settings.head_counts if 1 <= count <= half}) or [1]

    def _control(self, ranking: Sequence[Head], count: int) -> list[Head]:
        """Random heads from outside the contextual ones: what steering any heads at all would give."""
        return random.Random(self.settings.seed).sample(list(ranking[count:]), min(count, len(ranking) - count))

    def _gold_only(self) -> dict[str, float]:
        """Grade of every dev question from its gold passages alone, by key."""
        questions = [one.gold_only() for one in self.dev]
        grades = self.work.step("gold-only", lambda: self._grades(None, questions, 0.0))
        return {one.key: grade for one, grade in zip(questions, grades, strict=True)}

    def _refuse_silent_model(self) -> None:
        grades = self._gold_only()
        share = sum(grades.values()) / len(grades)
        if share < self.settings.min_answered:
            raise InvalidInputError(
                f"Given the gold passages alone, the model answers {share:.0%} of {len(grades)} dev questions, and at least "
                f"{self.settings.min_answered:.0%} are needed for alpha to be fitted: use a model that follows the prompt, or "
                "check the answers."
            )

    def _grades(
        self, profile: FocusProfile | None, questions: Sequence[Example], alpha: Any, *, gold_missing: bool = False
    ) -> list[float]:
        generator = FocusGenerator(self.model, self.tokenizer, profile, measure=False, max_batch=self.settings.batch)
        return measure_quality(
            generator, questions, alpha, max_new_tokens=self.settings.max_new_tokens, gold_missing=gold_missing
        )

    def _mean_grades(self, profile: FocusProfile | None, questions: Sequence[Example], alpha: float) -> list[float]:
        """Grade of each question, averaged over the passage counts of the choice."""
        every = [
            self._grades(profile, [one.at_count(count) for one in questions], alpha) for count in self.choice_counts
        ]
        return [sum(grades) / len(grades) for grades in zip(*every, strict=True)]

    def _teacher_forced(self, examples: Sequence[Example], rows: Rows | None = None) -> list[TeacherForced]:
        limit = min(self.settings.max_tokens, window_of(self.model))
        responses = None
        if self.settings.response == "model":
            generator = FocusGenerator(self.model, self.tokenizer, None, max_batch=self.settings.batch)
            found = [
                generator.answer(one.question, one.passages, max_new_tokens=self.settings.max_new_tokens).text
                for one in examples
            ]
            responses = [text.strip() or one.answers[0] for text, one in zip(found, examples, strict=True)]
        return teacher_forced_all(
            self.tokenizer,
            examples,
            max_tokens=limit,
            max_rows=self.settings.max_rows,
            rows=rows or self.settings.rows,
            responses=responses,
        )

    def _scores(self) -> dict[str, Any]:
        laid_out = self._teacher_forced(self.train[: self.settings.score_examples])
        return score_heads(
            self.model,
            laid_out,
            sink_tokens=self.settings.sink_tokens,
            progress=lambda done: self.progress("scoring heads", done, len(laid_out)),
        ).to_dict()

    def _train(self, loss: LossKind, heads: Sequence[Head]) -> dict[str, Any]:
        held_out_share = max(len(self.train) // 5, 1)
        parts = [self._teacher_forced(part) for part in (self.train[held_out_share:], self.train[:held_out_share])]
        total = sum(len(part) for part in parts)
        before = 0
        recordings = []
        for part in parts:
            start = before
            recordings.append(
                record_examples(
                    self.model,
                    part,
                    heads,
                    self.site,
                    progress=partial(self._recorded, start, total),
                )
            )
            before += len(part)
        settings = self.settings.training.model_copy(update={"loss": loss, "seed": self.settings.seed})
        trained = train_directions(
            recordings[0],
            recordings[1],
            settings,
            progress=lambda done: self.progress(f"training directions ({loss})", done, settings.epochs),
        )
        return {
            "heads": [list(head) for head in trained.heads],
            "directions": trained.directions.tolist(),
            "before": trained.before.tolist(),
            "after": trained.after.tolist(),
            "summary": summary(trained),
        }

    def _recorded(self, before: int, total: int, done: int) -> None:
        self.progress("recording", before + done, total)

    def _choose(
        self,
        trainings: dict[LossKind, Any],
        contextual: Sequence[Head],
        control: Sequence[Head],
        counts: Sequence[int],
    ) -> tuple[Variant, dict[str, Any]]:
        """Number of heads first, then the loss at that number, then the polish, by answer quality; random heads are measured and
        never chosen.
        """
        questions = examples_at(self.dev, self.choice_counts[-1])[: self.settings.choice_questions]
        bare = self.work.step("choice-bare", lambda: self._mean_grades(None, questions, 0.0))
        first, *others = trainings
        rows: list[Row] = []
        polishes = self.settings.polish.steps > 0
        total = (len(counts) + len(others) + 1 + 2 * polishes) * len(self.settings.choice_alphas)

        def measure(variant: Variant) -> None:
            for alpha in self.settings.choice_alphas:
                compute = partial(self._mean_grades, self._profile(variant), questions, alpha)
                grades = self.work.step(f"choice-{variant.name}-{alpha:g}", compute)
                gain = Estimate.of([after - before for after, before in zip(grades, bare, strict=True)])
                rows.append(Row(variant, alpha, Estimate.of(grades), gain))
                self.progress("choosing heads and loss", len(rows), total)

        for count in counts:
            measure(variant_of(f"{first}-{count}", first, contextual[:count], trainings[first]))
        best_count = len(max(rows, key=Row.worth).variant.heads)
        for loss in others:
            measure(variant_of(f"{loss}-{best_count}", loss, contextual[:best_count], trainings[loss]))
        best = max(rows, key=Row.worth)
        if polishes:
            measure(self._polished(best.variant))
            best = max(rows, key=Row.worth)
        loss = best.variant.loss
        random_heads = variant_of(f"random-{best_count}", loss, control[:best_count], trainings[loss])
        measure(random_heads)
        if polishes:
            measure(self._polished(random_heads))
        return best.variant, {
            "passages": self.choice_counts,
            "bare": Estimate.of(bare).to_dict(),
            "table": [row.to_dict() for row in rows],
            "chosen": best.variant.name,
        }

    def _polished(self, variant: Variant) -> Variant:
        name = f"{variant.name}-polished"

        def compute() -> Any:
            settings = self.settings.polish
            return polish_directions(
                self.model,
                self._profile(variant),
                self._teacher_forced(self.train, "all"),
                settings.model_copy(update={"seed": self.settings.seed}),
                progress=lambda done: self.progress("polishing directions", done, settings.steps),
            ).tolist()

        return replace(variant, name=name, directions=torch.tensor(self.work.step(f"directions-{name}", compute)))

    def _profile(self, variant: Variant) -> FocusProfile:
        entries = [HeadEntry(layer=layer, head=head) for layer, head in variant.heads]
        return FocusProfile(self.fingerprint, entries, variant.directions, site=self.site)

    def _activation(self, profile: FocusProfile) -> list[dict[str, float]]:
        """Where the steered heads look at each alpha, all of them steered at once, on dev examples."""
        examples = self._teacher_forced([one.at_count(self.choice_counts[-1]) for one in self.dev[:24]])
        heads = [(entry.layer, entry.head) for entry in profile.heads]
        rows = []
        alphas = (0.0, *self.settings.alphas)
        for done, alpha in enumerate(alphas, start=1):
            with focus(self.model, profile, alpha):
                masses = [
                    example_masses(self.model, one, sink_tokens=self.settings.sink_tokens, heads=heads)
                    for one in examples
                ]
            mean = torch.stack(masses).mean(dim=(0, 1))
            rows.append({"alpha": alpha, **{part: float(mass) for part, mass in zip(PARTS, mean, strict=True)}})
            self.progress("measuring activation", done, len(alphas))
        return rows

    def _bounded_alphas(self, activation: Sequence[dict[str, float]]) -> list[float]:
        """The clamp: no alpha beyond the one at which the gold passage gets most attention."""
        most = max(activation, key=lambda row: row["gold"])["alpha"]
        return [alpha for alpha in self.settings.alphas if alpha <= most] or list(self.settings.alphas[:1])

    def _sweeps(self, profile: FocusProfile, alphas: Sequence[float]) -> list[Sweep]:
        cells = [(count, examples_at(self.dev, count), False) for count in self.counts]
        # Whether a model still says that nothing is stated is a guard, not the aim: one count, half of the questions.
        if self.counts[-1] > 1:
            questions = examples_at(self.dev, self.counts[-1])
            cells.append((self.counts[-1], questions[: max(len(questions) // 2, 1)], True))
        sweeps: list[Sweep] = []
        for count, questions, missing in cells:
            columns = []
            for alpha in (0.0, *alphas):
                name = f"sweep-{count}-{'missing-' if missing else ''}{alpha:g}"
                compute = partial(self._grades, profile, questions, alpha, gold_missing=missing)
                columns.append(self.work.step(name, compute))
                steps = len(alphas) + 1
                self.progress("fitting alpha", len(sweeps) * steps + len(columns), len(cells) * steps)
            shown = [without_gold(one, count) if missing else one.passages for one in questions]
            noises = tuple(score_noise(passages) for passages in shown)
            sweeps.append(Sweep(count, (0.0, *alphas), tuple(zip(*columns, strict=True)), noises, missing))
        return sweeps

    def _with_references(self, cell: dict[str, Any], sweep: Sweep, profile: FocusProfile) -> dict[str, Any]:
        """A cell with what the policy itself reaches, alpha chosen for each question, and with the gold passages alone."""
        questions = examples_at(self.dev, sweep.count)
        alphas = {profile.policy.choose(signal_of(one.passages)).alpha for one in questions}
        if len(alphas) == 1 and alphas <= set(sweep.alphas):
            auto = sweep.column(alphas.pop())
        else:
            auto = self.work.step(f"auto-{sweep.count}", lambda: self._grades(profile, questions, profile.policy))
        known = self._gold_only()
        return {
            **cell,
            "auto": Estimate.of(auto).to_dict(),
            "gold_only": Estimate.of([known[one.key] for one in questions]).to_dict(),
            "signals": signal_quality(sweep, profile.policy, questions, self.settings.seed),
        }


def _sweep_figures(sweep: Sweep) -> dict[str, Any]:
    return {
        "count": sweep.count,
        "gold_missing": sweep.gold_missing,
        "alphas": list(sweep.alphas),
        "quality": [Estimate.of(sweep.column(alpha)).to_dict() for alpha in sweep.alphas],
        "gain": [sweep.gain(alpha).to_dict() for alpha in sweep.alphas],
    }


def _in_brief(figures: dict[str, Any]) -> dict[str, Any]:
    """What goes into the profile itself; the rest is in report.json."""
    return {name: figures[name] for name in ("loss", "cells", "best_single", "activation")}


def _finished(out: Path, digest: str) -> FocusProfile | None:
    """The profile of an earlier run over the same model, examples and settings, if it was finished."""
    if not (out / "focus_profile.json").is_file():
        return None
    found = FocusProfile.load(out)
    return found if found.provenance.get("digest") == digest and not (out / f".fit-{digest}").exists() else None
