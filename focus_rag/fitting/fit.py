"""Fit a profile to a model: find its contextual heads, learn their directions, choose alpha and split, and write down
what was measured.

Every step stores its result before the next begins, under a name made from all that it depends on. A run that was
killed goes on where it stopped and ends with the profile of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

import focus_rag
from focus_rag.confidence import Confidence, Support
from focus_rag.errors import ProfileError, PromptTooLongError
from focus_rag.examples import Example, ExampleSet, split_examples
from focus_rag.fingerprint import Fingerprint, refuse_baked
from focus_rag.fitting.alpha_and_split import fit_alpha_and_split
from focus_rag.fitting.asking import examples_at
from focus_rag.fitting.confidence_fitting import Judged, fit_confidence
from focus_rag.fitting.context import FitContext, Progress
from focus_rag.fitting.directions import fit_directions
from focus_rag.fitting.report import write_report
from focus_rag.fitting.settings import FitSettings
from focus_rag.fitting.steps import FitSteps, fit_digest
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile
from focus_rag.prompt_layout import PromptLayout

_QUESTION_TOO_LONG = "the question alone does not fit the model's window"
_GOLD_TOO_LONG = "the model's window has no room for more than the gold passages"
_SOURCE, _TRAINED_ON, _CHOSEN_ON = "focus-rag fit", "trained_on", "chosen_on"


def fit_profile(
    model: nn.Module,
    tokenizer: Any,
    examples: ExampleSet | Sequence[Example],
    out: str | Path,
    settings: FitSettings | None = None,
    *,
    directions_of: FocusProfile | None = None,
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
        directions_of: Take heads and directions from this profile (the published ones, or those of a fit on other
            questions) and choose only how much of them a request gets, and whether to lean on scores. All questions are
            dev then, but for those it says it was trained on.
        model_id: Name of the model in the profile.
        progress: Told how far each phase is.

    Returns:
        The profile, as saved in `out`.

    Raises:
        InvalidInputError: Too few usable examples, or a model that answers none of them from the gold passage alone.
        ProfileMismatchError: `directions_of` belongs to another model, or the model is a checkpoint that has its focus
            baked in.
        UnsupportedModelError: The model cannot be steered.
    """
    refuse_baked(model)
    settings = settings or FitSettings()
    given = examples if isinstance(examples, ExampleSet) else ExampleSet(tuple(examples), {}, "the examples")
    if directions_of is not None:
        directions_of.check(model, tokenizer)
        given = _not_trained_on(given, directions_of)
    settings = settings.model_copy(
        update={"layout": settings.layout or (directions_of and directions_of.layout) or PromptLayout()}
    )
    given, n_cut = _that_fit(given, model, tokenizer, settings)
    usable = tuple({one.key: one for one in given.require(settings.min_examples)}.values())
    fingerprint = Fingerprint.of(model, tokenizer, model_id=model_id)
    digest = fit_digest(model, tokenizer, fingerprint, usable, settings, directions_of)
    done = _finished(Path(out), digest)
    if done is not None:
        return done
    work = FitSteps(Path(out), digest)
    train, dev = (
        split_examples(usable, dev_share=settings.dev_share) if directions_of is None else ([], _by_key(usable))
    )
    fit = FitContext(
        model, tokenizer, train, dev, settings, fingerprint, work, progress or (lambda _phase, _done, _total: None)
    )
    if directions_of is None:
        profile, found = fit_directions(fit)
        provenance: dict[str, Any] = {_TRAINED_ON: sorted(_name(one) for one in fit.train)}
    else:
        profile, found = directions_of.replace(fingerprint=fingerprint), {}
        before = dict(directions_of.provenance)
        provenance = {
            _TRAINED_ON: before.pop(_TRAINED_ON, []),
            _CHOSEN_ON: before.pop(_CHOSEN_ON, []),
            "directions": before,
        }
    profile, how_much = fit_alpha_and_split(fit, profile)
    confidence, how_sure = _confidence(fit, profile)
    profile = profile.replace(confidence=confidence)
    if (
        directions_of is not None
        and directions_of.provenance.get("source") == _SOURCE
        and _TRAINED_ON not in directions_of.provenance
    ):
        how_much["warnings"].append(
            "The profile does not say which questions its directions were trained on. If these are among them, "
            "everything here flatters it: fit it anew, or take other questions."
        )
    if n_cut:
        how_much["warnings"].append(
            f"{n_cut} questions have more passages than fit the model's window beside an answer: they were asked with "
            f"those that fit, and alpha and split are fitted for {' and '.join(map(str, fit.counts))} passages in the "
            "prompt."
        )
    figures = {
        **found,
        **how_much,
        "confidence": how_sure,
        "site": profile.site,
        "passages_at": profile.passages_at,
        "grading": fit.answers.grading,
        "heads": [list(head) for head in profile.head_pairs],
        "examples": {
            **given.describe(),
            "train": len(fit.train),
            "dev": len(fit.dev),
            **({"answerable_among": min(len(dev), settings.answerable_among)} if settings.answerable_among else {}),
        },
    }
    provenance = {
        **provenance,
        _CHOSEN_ON: sorted({*provenance.get(_CHOSEN_ON, ()), *(_name(one) for one in fit.asked)}),
        "source": _SOURCE,
        "version": focus_rag.__version__,
        "digest": digest,
        "settings": settings.model_dump(mode="json"),
        "examples": figures["examples"],
    }
    profile = profile.replace(layout=settings.layout, provenance=provenance, report=_in_brief(figures))
    write_report(Path(out), profile, figures)
    profile.save(out)
    if not settings.keep_work:
        work.remove()
    return profile


def _confidence(fit: FitContext, profile: FocusProfile) -> tuple[Confidence | None, dict[str, Any]]:
    """From what speaks for an answer to how likely it is right: of dev questions as retrieved, with their gold passages
    and without them.
    """

    def asked(count: int, gold_missing: bool) -> list[Judged]:
        questions = examples_at(fit.dev, count)
        rows = fit.work.step(
            f"judged-{count}{'-missing' if gold_missing else ''}",
            lambda: [asdict(one) for one in fit.answers.judged(profile, questions, gold_missing=gold_missing)],
        )
        return [Judged(**{**row, "support": Support(**row["support"])}) for row in rows]

    found: list[Judged] = []
    cells = [
        (count, gold_missing) for count in fit.counts for gold_missing in (False, True) if count > 1 or not gold_missing
    ]
    for done, cell in enumerate(cells, start=1):
        found += asked(*cell)
        fit.progress("fitting confidence", done, len(cells))
    return fit_confidence(found, fit.settings.missing_share, fit.settings.seed)


def _that_fit(given: ExampleSet, model: nn.Module, tokenizer: Any, settings: FitSettings) -> tuple[ExampleSet, int]:
    """The examples as the model's window shows them: without the passages that a prompt has no room for, the worst of
    those that are not gold first. So an example has as many passages as a request of its kind counts.

    Returns:
        The examples, and how many of them were cut. Left out are those of which nothing but the question, or the
        gold passages, fits.
    """
    bare = FocusGenerator(model, tokenizer, layout=settings.layout)
    room = bare.context_window - settings.max_new_tokens
    shown: dict[str, Example] = {}
    too_long: dict[str, list[Example]] = {_QUESTION_TOO_LONG: [], _GOLD_TOO_LONG: []}
    for one in given.examples:
        worst_first = [index for index in reversed(one.best_first()) if index not in one.gold]
        try:
            prompt = bare.prompts.from_question(one.question, one.passages, max_tokens=room, drop_order=worst_first)
        except PromptTooLongError:
            fits = bare.prompts.has_room_for(one.question, max_tokens=room)
            too_long[_GOLD_TOO_LONG if fits else _QUESTION_TOO_LONG].append(one)
            continue
        kept = one.of_these([index for index in range(len(one.passages)) if index not in prompt.dropped])
        if len(kept.passages) > len(kept.gold):
            shown[one.key] = kept
        else:
            too_long[_GOLD_TOO_LONG].append(one)
    for reason, examples in too_long.items():
        given = _left_out(given, examples, reason)
    cut = sum(len(shown[one.key].passages) < len(one.passages) for one in given.examples)
    return ExampleSet(tuple(shown[one.key] for one in given.examples), given.skipped, given.source), cut


def _not_trained_on(given: ExampleSet, profile: FocusProfile) -> ExampleSet:
    """The examples without those that the directions of a profile were trained on."""
    trained_on = set(profile.provenance.get(_TRAINED_ON, []))
    return _left_out(
        given, [one for one in given.examples if _name(one) in trained_on], "the directions were trained on it"
    )


def _left_out(given: ExampleSet, examples: Sequence[Example], reason: str) -> ExampleSet:
    """The other examples, with these counted."""
    if not examples:
        return given
    gone = {one.key for one in examples}
    return ExampleSet(
        tuple(one for one in given.examples if one.key not in gone),
        {**given.skipped, reason: len(examples)},
        given.source,
    )


def _name(example: Example) -> str:
    """Enough of an example's key to know it again."""
    return example.key[:12]


def _by_key(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda one: one.key)


def _in_brief(figures: dict[str, Any]) -> dict[str, Any]:
    """What goes into the profile itself; the rest is in report.json."""
    names = ("grading", "loss", "cells", "best_single", "overall", "activation", "split", "confidence", "warnings")
    return {name: figures[name] for name in names if name in figures}


def _finished(out: Path, digest: str) -> FocusProfile | None:
    """The profile of an earlier run over the same model, examples and settings, if it was finished."""
    if not (out / "focus_profile.json").is_file() or (out / f".fit-{digest}").exists():
        return None
    try:
        found = FocusProfile.load(out)
    except ProfileError:  # damaged, or of another version: it is made anew
        return None
    return found if found.provenance.get("digest") == digest else None
