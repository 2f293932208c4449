"""Fit a profile to a model: find its contextual heads, learn their directions, choose alpha, and write down what was measured.

Every step stores its result before the next begins, under a name made from all that it depends on. A run that was killed
goes on where it stopped and ends with the profile of an uninterrupted run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import focus_rag
from focus_rag.alpha_fitting import fit_policy, signal_quality
from focus_rag.alpha_sweep import Estimate, Sweep, examples_at
from focus_rag.calm_examples import calmed, pool_of
from focus_rag.direction_training import LossKind, summary, train_directions
from focus_rag.errors import UnsupportedModelError
from focus_rag.examples import Example, ExampleSet, split_examples
from focus_rag.fit_answers import FitAnswers
from focus_rag.fit_choice import Variant, choose_variant
from focus_rag.fit_report import write_report
from focus_rag.fit_settings import FitSettings
from focus_rag.fit_steps import FitSteps, fit_digest
from focus_rag.fit_sweep import SweepCell, cells_of, climb
from focus_rag.head_scoring import PARTS, Head, HeadScores, example_masses, score_heads
from focus_rag.model_layout import ModelLayout, Site, window_of
from focus_rag.noise import signal_of
from focus_rag.passage_order import order_figures, order_warning
from focus_rag.polishing import polish_directions
from focus_rag.profile import Fingerprint, FocusProfile, HeadEntry
from focus_rag.recorded_heads import Recording, record_examples
from focus_rag.score_split import ScoreSplit
from focus_rag.split_fitting import Unsplit, fit_split
from focus_rag.steering import focus
from focus_rag.teacher_forcing import Rows, TeacherForced, teacher_forced_all
from focus_rag.turning import Turning

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
        if settings.training_order == "shuffled":
            self.train = [one.shuffled(settings.seed) for one in self.train]
        self.pool = pool_of(examples)
        self.answers = FitAnswers(model, tokenizer, self.dev, settings, work)
        self.layout = ModelLayout.of(model)
        self.site = self._site()
        self._recorded: tuple[Recording, Recording] | None = None
        widest = max(len(one.passages) for one in self.dev)
        self.counts = sorted(
            {count for count in settings.counts if len(examples_at(self.dev, count)) >= settings.min_examples // 2}
        )
        if not self.counts:
            self.counts = [widest]
        choice_counts = sorted({min(count, widest) for count in settings.choice_counts})
        self.widest = choice_counts[-1]
        self.choice_cells = self._choice_cells(choice_counts)

    def run(self) -> tuple[FocusProfile, dict[str, Any]]:
        """All phases."""
        self.answers.refuse_silent_model()
        scores = HeadScores.from_dict(self.work.step("scores", self._scores))
        ranking = scores.ranking()
        counts = self._head_counts()
        contextual, control = ranking[: counts[-1]], self._control(ranking, counts[-1])
        trainings = {
            loss: self.work.step(f"directions-{loss}", partial(self._train, loss, [*contextual, *control]))
            for loss in self.settings.losses
        }
        chosen, choice = self._choose(trainings, contextual, control, counts)
        profile = self._profile(chosen)
        profile = profile.replace(
            heads=[one.model_copy(update={"score": scores.of((one.layer, one.head))}) for one in profile.heads]
        )
        activation = self.work.step("activation", lambda: self._activation(profile))
        cells, warnings = cells_of(
            self.dev, self.pool, self.counts, self.settings.noises, max(self.settings.min_examples // 2, 1)
        )
        sweeps = climb(
            cells,
            self._bounded_alphas(activation),
            partial(self._swept, profile),
            partial(self.progress, "fitting alpha"),
        )
        fit = fit_policy(sweeps)
        profile = profile.replace(policy=fit.policy)
        present = [(cell, sweep) for cell, sweep in zip(cells, sweeps, strict=True) if not sweep.gold_missing]
        order = self._order(profile, *next(one for one in present if (one[0].count, one[0].noise) == (self.counts[-1], 1.0)))
        harm = order_warning(order, self.settings.order_margin)
        if harm is not None:
            fit = fit_policy(sweeps, needs_order=True)
            profile = profile.replace(policy=fit.policy)
        split, leaning = self._split(profile, cells, sweeps)
        profile = profile.replace(split=split)
        figures = {
            "site": self.site,
            "passages_at": self.passages_at,
            "grading": self.answers.grading,
            "loss": chosen.loss,
            "heads": [[layer, head] for layer, head in chosen.heads],
            "scores": scores.to_dict(),
            "trainings": {loss: found["summary"] for loss, found in trainings.items()},
            "choice": choice,
            "activation": activation,
            "sweeps": [_sweep_figures(sweep) for sweep in sweeps],
            "cells": [
                self._with_references(found, cell, sweep, profile)
                for found, (cell, sweep) in zip(fit.cells, present, strict=True)
            ],
            "best_single": fit.best_single,
            "overall": fit.overall,
            "order": order,
            "split": leaning,
            "warnings": warnings if harm is None else [*warnings, harm],
        }
        return profile, figures

    def _choice_cells(self, counts: Sequence[int]) -> list[tuple[int, float, list[Example]]]:
        """The questions of the choice of heads at each passage count, and once more at the largest, calmed where that can be done."""
        questions = [one for one in self.dev if len(one.passages) >= counts[-1]][: self.settings.choice_questions]
        cells = [(count, 1.0, [one.at_count(count) for one in questions]) for count in counts]
        calmest = min(self.settings.noises)
        calm = [one for example in questions if (one := calmed(example, counts[-1], calmest, self.pool)) is not None]
        if calmest < 1 and len(calm) == len(questions):
            cells.append((counts[-1], calmest, calm))
        return cells

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

    @cached_property
    def passages_at(self) -> int | None:
        """Where passages begin in the prompts of the fit, which directions at site `post_rope` are tied to."""
        if self.site != "post_rope":
            return None
        try:
            Turning.of(self.model)
        except UnsupportedModelError:
            return None
        return int(median(one.passages_at for one in self._training_examples(slice(None))))

    def _head_counts(self) -> list[int]:
        half = max(len(self.layout.layers) * self.layout.query_heads // 2, 1)
        return sorted({count for count in self.settings.head_counts if 1 <= count <= half}) or [1]

    def _control(self, ranking: Sequence[Head], count: int) -> list[Head]:
        """Random heads from outside the contextual ones: what steering any heads at all would give."""
        return random.Random(self.settings.seed).sample(list(ranking[count:]), min(count, len(ranking) - count))

    def _mean_grades(self, profile: FocusProfile | None, alpha: float) -> list[float]:
        """Grade of each question of the choice, averaged over its cells."""
        return _means([self.answers.grades(profile, questions, alpha) for _, _, questions in self.choice_cells])

    def _swept(self, profile: FocusProfile, cell: SweepCell, alpha: float) -> list[float]:
        return self.work.step(  # type: ignore[no-any-return]
            f"sweep-{cell.name}-{alpha:g}",
            lambda: self.answers.grades(profile, cell.questions, alpha, gold_missing=cell.gold_missing),
        )

    def _order(self, profile: FocusProfile, cell: SweepCell, sweep: Sweep) -> dict[str, Any]:
        """What focus brings in a cell's own order, where it was asked already, and in a random one."""
        n = self.settings.order_questions
        retrieved = sweep.column(0.0)[:n], self._auto(profile, cell, sweep)[:n]

        def grades(shown: Sequence[Example], is_focused: bool) -> list[float]:
            return self.answers.grades(*((profile, shown, profile.policy) if is_focused else (None, shown, 0.0)))

        return self.work.step(  # type: ignore[no-any-return]
            "order", lambda: order_figures(cell.questions[:n], retrieved, self.settings.seed, grades)
        )

    def _split(
        self, profile: FocusProfile, cells: Sequence[SweepCell], sweeps: Sequence[Sweep]
    ) -> tuple[ScoreSplit | None, dict[str, Any]]:
        """Whether to lean on the best scored passages, with what was measured, and what the choice does where scores say nothing."""
        unsplit = [
            Unsplit(cell, sweep.column(0.0), sweep.column(0.0) if cell.gold_missing else self._auto(profile, cell, sweep))
            for cell, sweep in zip(cells, sweeps, strict=True)
        ]
        settings = self.settings
        best, tried = fit_split(
            unsplit, settings.split_reaches, settings.split_taus, partial(self._leaning, profile), partial(self.progress, "fitting the split")
        )
        figures: dict[str, Any] = {
            "tried": [one.to_dict(unsplit) for one in tried],
            "chosen": None if best is None else best.split.model_dump(),
        }
        if best is not None:
            figures["shuffled_scores"] = self.work.step("split-shuffled", partial(self._unreliable, profile, best.split, unsplit))
        return (None if best is None else best.split), figures

    def _leaning(self, profile: FocusProfile, split: ScoreSplit, cell: SweepCell) -> list[float]:
        return self.work.step(  # type: ignore[no-any-return]
            f"split-{cell.name}-{split.reach:g}-{split.tau:g}",
            lambda: self.answers.grades(profile.replace(split=split), cell.questions, "auto", gold_missing=cell.gold_missing, split="auto"),
        )

    def _unreliable(self, profile: FocusProfile, split: ScoreSplit, unsplit: Sequence[Unsplit]) -> dict[str, Any]:
        """The largest cell as retrieved, once more with its scores dealt out anew."""
        one = next(each for each in unsplit if (each.cell.count, each.cell.noise, each.cell.gold_missing) == (self.counts[-1], 1.0, False))
        dealt = [each.with_shuffled_scores(self.settings.seed) for each in one.cell.questions]
        found = self.answers.grades(profile.replace(split=split), dealt, "auto", split="auto")
        gain = [after - before for before, after in zip(one.bare, found, strict=True)]
        return {name: Estimate.of(values).to_dict() for name, values in (("bare", one.bare), ("split", found), ("gain", gain))}

    def _auto(self, profile: FocusProfile, cell: SweepCell, sweep: Sweep) -> list[float]:
        """Grades of a cell's questions under the policy, read off the sweep where it chose alphas of the grid."""
        questions = cell.questions
        alphas = [profile.policy.choose(signal_of(one.passages, score_kind=one.score_kind)).alpha for one in questions]
        if set(alphas) <= set(sweep.alphas):
            return [sweep.at(place, alpha) for place, alpha in enumerate(alphas)]
        by_order = "-by-order" if getattr(profile.policy, "needs_order", False) else ""
        return self.work.step(  # type: ignore[no-any-return]
            f"auto-{cell.name}{by_order}", lambda: self.answers.grades(profile, questions, profile.policy)
        )

    def _training_examples(self, part: slice, rows: Rows | None = None) -> list[TeacherForced]:
        """Part of the training examples, laid out."""
        return self._laid_out("train", self.train, self.train[part], rows)

    def _laid_out(
        self, which: str, every: Sequence[Example], examples: Sequence[Example], rows: Rows | None = None
    ) -> list[TeacherForced]:
        """Some of a named list of examples as sequences with their responses."""
        response = self.settings.response
        own = (
            {}
            if response == "gold"
            else {one.key: text.strip() for one, text in zip(every, self.answers.bare_texts(which, every), strict=True)}
        )
        pairs = [
            (one, text)
            for one in examples
            for text in dict.fromkeys(
                [
                    *([one.answers[0]] if response != "model" else []),
                    *([own[one.key] or one.answers[0]] if response != "gold" else []),
                ]
            )
        ]
        return teacher_forced_all(
            self.tokenizer,
            [one for one, _ in pairs],
            max_tokens=min(self.settings.max_tokens, window_of(self.model)),
            max_rows=self.settings.max_rows,
            rows=rows or self.settings.rows,
            responses=[text for _, text in pairs],
        )

    def _scores(self) -> dict[str, Any]:
        laid_out = self._training_examples(slice(self.settings.score_examples))
        return score_heads(
            self.model,
            laid_out,
            sink_tokens=self.settings.sink_tokens,
            progress=lambda done: self.progress("scoring heads", done, len(laid_out)),
        ).to_dict()

    def _train(self, loss: LossKind, heads: Sequence[Head]) -> dict[str, Any]:
        training, held_out = self._recordings(heads)
        settings = self.settings.training.model_copy(update={"loss": loss, "seed": self.settings.seed})
        trained = train_directions(
            training,
            held_out,
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

    def _recordings(self, heads: Sequence[Head]) -> tuple[Recording, Recording]:
        """Examples to train on and others to stop by, recorded once for all losses."""
        if self._recorded is None:
            held_out = max(len(self.train) // 5, 1)
            parts = [self._training_examples(part) for part in (slice(held_out, None), slice(held_out))]
            total = sum(map(len, parts))

            def record(part: Sequence[TeacherForced], before: int) -> Recording:
                def progress(done: int) -> None:
                    self.progress("recording", before + done, total)

                return record_examples(
                    self.model, part, heads, self.site, passages_at=self.passages_at, progress=progress
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
        """Number of heads, loss and polish by answer quality, with what knowing the gold passage would bring at the same heads."""
        bare = self.work.step("choice-bare", lambda: self._mean_grades(None, 0.0))

        def grades(variant: Variant, alpha: float) -> list[float]:
            compute = partial(self._mean_grades, self._profile(variant), alpha)
            return self.work.step(f"choice-{variant.name}-{alpha:g}", compute)  # type: ignore[no-any-return]

        best, rows = choose_variant(
            trainings,
            contextual,
            control,
            counts,
            self.settings.choice_alphas,
            bare=bare,
            grades=grades,
            polished=self._polished if self.settings.polish.steps > 0 else None,
            progress=partial(self.progress, "choosing heads and loss"),
        )
        oracles = {
            tau: self.work.step(f"choice-oracle-{len(best.heads)}-{tau:g}", partial(self._oracle, best.heads, tau))
            for tau in self.settings.oracle_taus
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
                        "gain": Estimate.of([after - before for after, before in zip(oracle, bare, strict=True)]).to_dict(),
                    }
                    for tau, oracle in oracles.items()
                ],
            },
            "chosen": best.name,
        }

    def _oracle(self, heads: Sequence[Head], tau: float) -> list[float]:
        return _means([self.answers.oracle_grades(heads, questions, tau) for _, _, questions in self.choice_cells])

    def _polished(self, variant: Variant) -> Variant:
        name = f"{variant.name}-polished"

        def compute() -> Any:
            settings = self.settings.polish
            return polish_directions(
                self.model,
                self._profile(variant),
                self._training_examples(slice(None), "all"),
                settings.model_copy(update={"seed": self.settings.seed}),
                progress=lambda done: self.progress("polishing directions", done, settings.steps),
            ).tolist()

        return replace(variant, name=name, directions=torch.tensor(self.work.step(f"directions-{name}", compute)))

    def _profile(self, variant: Variant) -> FocusProfile:
        entries = [HeadEntry(layer=layer, head=head) for layer, head in variant.heads]
        return FocusProfile(
            self.fingerprint, entries, variant.directions, site=self.site, passages_at=self.passages_at
        )

    def _activation(self, profile: FocusProfile) -> list[dict[str, float]]:
        """Where the steered heads look at each alpha, all of them steered at once, on dev examples."""
        shown = [one.at_count(self.widest) for one in self.dev[:24]]
        examples = self._laid_out("activation", shown, shown)
        heads = profile.head_pairs
        rows = []
        alphas = (0.0, *self.settings.alphas)
        for done, alpha in enumerate(alphas, start=1):
            masses = []
            for one in examples:
                with focus(self.model, profile, alpha, passages_at=one.passages_at):
                    masses.append(example_masses(self.model, one, sink_tokens=self.settings.sink_tokens, heads=heads))
            mean = torch.stack(masses).mean(dim=(0, 1))
            rows.append({"alpha": alpha, **{part: float(mass) for part, mass in zip(PARTS, mean, strict=True)}})
            self.progress("measuring activation", done, len(alphas))
        return rows

    def _bounded_alphas(self, activation: Sequence[dict[str, float]]) -> list[float]:
        """The clamp: no alpha beyond the one at which the gold passage gets most attention."""
        most = max(activation, key=lambda row: row["gold"])["alpha"]
        return [alpha for alpha in self.settings.alphas if alpha <= most] or list(self.settings.alphas[:1])

    def _with_references(
        self, found: dict[str, Any], cell: SweepCell, sweep: Sweep, profile: FocusProfile
    ) -> dict[str, Any]:
        """A cell with what the policy itself reaches, alpha chosen for each question, and with the gold passages alone."""
        questions, auto = cell.questions, self._auto(profile, cell, sweep)
        known = self.answers.gold_only
        return {
            **found,
            "auto": Estimate.of(auto).to_dict(),
            "auto_gain": Estimate.of([after - row[0] for after, row in zip(auto, sweep.quality, strict=True)]).to_dict(),
            "gold_only": Estimate.of([known[one.key] for one in questions]).to_dict(),
            "signals": signal_quality(sweep, profile.policy, questions, self.settings.seed),
        }


def _means(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(grades) / len(grades) for grades in zip(*columns, strict=True)]


def _sweep_figures(sweep: Sweep) -> dict[str, Any]:
    return {
        "count": sweep.count,
        "noise": sweep.noise,
        "gold_missing": sweep.gold_missing,
        "alphas": list(sweep.alphas),
        "quality": [Estimate.of(sweep.column(alpha)).to_dict() for alpha in sweep.alphas],
        "gain": [sweep.gain(alpha).to_dict() for alpha in sweep.alphas],
    }


def _in_brief(figures: dict[str, Any]) -> dict[str, Any]:
    """What goes into the profile itself; the rest is in report.json."""
    return {name: figures[name] for name in ("grading", "loss", "cells", "best_single", "overall", "activation", "split", "warnings")}


def _finished(out: Path, digest: str) -> FocusProfile | None:
    """The profile of an earlier run over the same model, examples and settings, if it was finished."""
    if not (out / "focus_profile.json").is_file():
        return None
    found = FocusProfile.load(out)
    return found if found.provenance.get("digest") == digest and not (out / f".fit-{digest}").exists() else None
