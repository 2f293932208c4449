"""`focus-rag fit`: a focus profile for a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from focus_rag.cli.loading import (
    DeviceOption,
    JsonOption,
    ModelOption,
    ScoreKindOption,
    TemplateOption,
    move_model,
    parse_template,
    warn_of_unread,
)
from focus_rag.cli.output import note, progress, write_json, write_table

if TYPE_CHECKING:
    from focus_rag.examples import ExampleSet
    from focus_rag.fitting.settings import FitSettings
    from focus_rag.profile import FocusProfile
    from focus_rag.score_order import ScoreKind


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the profile and its report to.")],
    model: ModelOption = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            "--examples",
            help="Labelled questions, one JSON object per line (.jsonl or .jsonl.gz); default: generated ones.",
        ),
    ] = None,
    from_documents: Annotated[
        Path | None,
        typer.Option("--from-documents", help="Folder of documents to make questions from, where none are labelled."),
    ] = None,
    directions_of: Annotated[
        str | None,
        typer.Option(
            "--directions-of",
            help="Take heads and directions from this profile (folder or Hub id) and fit alpha and split alone.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A first look with fewer questions.")] = False,
    polish: Annotated[
        int,
        typer.Option(
            "--polish", help="Steps of polishing the directions on the model itself; slow, kept only if it wins."
        ),
    ] = 0,
    shuffle: Annotated[
        bool,
        typer.Option("--shuffle", help="Train on passages in random order, so that no position is learned."),
    ] = False,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            help="Where directions enter: post_rope (default, as published), normed, or projection, which is "
            "what `focus-rag export` can bake.",
        ),
    ] = None,
    answerable_among: Annotated[
        int | None,
        typer.Option(
            "--answerable-among",
            help="Choose by questions that the model answers from their gold passages alone, out of so many; for "
            "models that answer few.",
            min=1,
        ),
    ] = None,
    score_kind: ScoreKindOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything that is drawn.")] = 0,
    device: DeviceOption = None,
    template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find a model's contextual heads, train their focus directions, and fit alpha and whether to lean on the
    retriever's scores.

    Without questions of yours it takes generated ones, about things that no model knows. How far to lean on a retriever
    only its own scores tell: then fit again, with --directions-of this profile and --examples.

    An interrupted fit goes on where it stopped when it is run again.

    Example: focus-rag fit --model Qwen/Qwen2.5-1.5B-Instruct --examples questions.jsonl --out ./profile
    """
    from focus_rag.errors import InvalidInputError
    from focus_rag.fitting.polishing import PolishSettings
    from focus_rag.fitting.settings import FitSettings
    from focus_rag.model_layout import Site
    from focus_rag.profile import FocusProfile

    if polish < 0:
        raise InvalidInputError("--polish must be 0 or more.")
    if directions_of is not None and (polish or shuffle or site):
        raise InvalidInputError(
            "--polish, --shuffle and --site are for directions that are trained here; leave them out with "
            "--directions-of."
        )
    taken = None if directions_of is None else FocusProfile.load(directions_of)
    settings = FitSettings(
        seed=seed,
        polish=PolishSettings(steps=polish),
        training_order="shuffled" if shuffle else "as given",
        answerable_among=answerable_among,
        layout=parse_template(template, taken.layout if taken else None),
    )
    if site is not None:
        if site not in get_args(Site):
            raise InvalidInputError(f"--site is one of {', '.join(get_args(Site))}; got {site!r}.")
        settings = settings.model_copy(update={"sites": (site,)})
    settings = settings.quick() if quick else settings
    given = _examples(examples, from_documents, seed, score_kind)
    for reason, count in given.skipped.items():
        note(f"left out: {reason} ({count})")
    given.require(settings.min_examples)
    profile = _fit(model, given, out, settings, taken, device)
    if as_json:
        write_json({"profile": str(out), "heads": len(profile.heads), "site": profile.site, "report": profile.report})
    else:
        _show(profile, out)


def _examples(
    examples: Path | None, from_documents: Path | None, seed: int, score_kind: ScoreKind | None
) -> ExampleSet:
    from focus_rag.errors import InvalidInputError

    if examples is not None and from_documents is not None:
        raise InvalidInputError("Give either --examples FILE or --from-documents FOLDER.")
    if examples is None and score_kind is not None:
        raise InvalidInputError("--score-kind says what the scores of --examples are; give them too, or leave it out.")
    if examples is not None:
        from focus_rag.examples import load_examples

        return load_examples(examples, score_kind=score_kind)
    if from_documents is not None:
        from focus_rag.fitting.cloze_examples import examples_from_documents

        return examples_from_documents(str(from_documents), seed=seed)
    from focus_rag.embedded.retrieval import generated_examples

    note(
        "fitting on generated questions, found by BM25: how far to lean on your retriever its own scores tell "
        "(--directions-of, --examples)"
    )
    return generated_examples(seed)


def _fit(
    model: str | None,
    given: ExampleSet,
    out: Path,
    settings: FitSettings,
    taken: FocusProfile | None,
    device: str | None,
) -> FocusProfile:
    with progress() as bar:
        loading = bar.add_task("loading the model", total=None)
        from focus_rag.cli.output import quiet_libraries
        from focus_rag.fitting.fit import fit_profile
        from focus_rag.generator import FocusGenerator

        quiet_libraries()
        bare = FocusGenerator.from_pretrained(model or _embedded_model())
        warn_of_unread(settings.layout, bare)
        move_model(bare, device)
        bar.remove_task(loading)
        if settings.sites == ("projection",):
            _warn_where_nothing_can_be_baked(bare.model)
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        return fit_profile(
            bare.model,
            bare.tokenizer,
            given,
            out,
            settings,
            directions_of=taken,
            model_id=model or "focus_rag embedded reader",
            progress=report,
        )


def _warn_where_nothing_can_be_baked(model: Any) -> None:
    """Before an hour of fitting, not after it: this site is asked for mostly to export what is found."""
    from focus_rag.errors import UnsupportedModelError
    from focus_rag.model_layout import config_with_query_bias

    try:
        config_with_query_bias(model)
    except UnsupportedModelError as error:
        note(f"warning: {error} The profile will steer this model, but not be exported.")


def _embedded_model() -> Path:
    from focus_rag.embedded import embedded_model_folder

    return embedded_model_folder()


def _show(profile: FocusProfile, out: Path) -> None:
    columns = ["passages", "noise", "questions", "bare", "auto", "best single", "gold only", "alpha"]
    write_table(
        columns,
        [
            [
                str(cell["count"]),
                f"{cell['noise']:g}",
                str(cell["questions"]),
                *(f"{cell[name]['mean']:.1%}" for name in ("bare", "auto", "at_best_single", "gold_only")),
                f"{cell['auto_alpha']:.2f}",
            ]
            for cell in profile.report["cells"]
        ],
        numbers=columns,
    )
    for warning in profile.report["warnings"]:
        note(f"warning: {warning}")
    split = profile.split
    leaning = "no split" if split is None else f"split of {split.in_words}"
    typer.echo(
        f"{out}: {len(profile.heads)} contextual heads, site {profile.site}, {leaning}; {out / 'report.md'} says how "
        "it was found"
    )
