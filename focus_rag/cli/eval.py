"""`focus-rag eval`: how much focusing helps on one's own questions, against every rival."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from focus_rag.cli.loading import (
    DeviceOption,
    JsonOption,
    ModelOption,
    ProfileOption,
    ScoreKindOption,
    TemplateOption,
    load_generator,
)
from focus_rag.cli.output import note, progress, write_json, write_table
from focus_rag.fitting.grading import Grading

if TYPE_CHECKING:
    from focus_rag.evaluation.cases import CaseSource
    from focus_rag.evaluation.results import Evaluation
    from focus_rag.score_order import ScoreKind


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the answers and the report.")],
    model: ModelOption = None,
    profile: ProfileOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Questions: JSONL, a lost-in-the-middle, HELMET or ALCE file, a BEIR folder, a CSV; default: "
            "generated ones.",
        ),
    ] = None,
    dev: Annotated[Path | None, typer.Option("--dev", help="Questions to choose tuned methods by.")] = None,
    docs: Annotated[
        Path | None, typer.Option("--docs", help="Documents that the questions of a CSV are about.")
    ] = None,
    score_kind: ScoreKindOption = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with semicolons between them; default: all.")
    ] = None,
    counts: Annotated[
        str, typer.Option("--counts", help="Passages per question; 'all' leaves them as they come.")
    ] = "1,5,10,20",
    noise: Annotated[
        str | None, typer.Option("--noise", help="Shares of hard distractors, e.g. 0,0.5,1; default: as they come.")
    ] = None,
    positions: Annotated[
        bool, typer.Option("--positions", help="Also with the gold first, in the middle and last.")
    ] = False,
    gold_missing: Annotated[bool, typer.Option("--gold-missing", help="Also without the gold passage.")] = False,
    shuffled_scores: Annotated[
        bool, typer.Option("--shuffled-scores", help="Also with scores that say nothing.")
    ] = False,
    without_scores: Annotated[
        bool, typer.Option("--without-scores", help="Also without scores, as LangChain's retrievers hand passages on.")
    ] = False,
    rich: Annotated[
        float, typer.Option("--rich", help="Share of the generated questions and facts not put plainly, 0 to 1.")
    ] = 0.0,
    limit: Annotated[int, typer.Option("--limit", help="Questions in each cell.")] = 300,
    main_limit: Annotated[
        int | None,
        typer.Option(
            "--main-limit",
            help="Questions of bare, gold only, auto, directions alone, best fixed alpha, random heads and split "
            "softmax in the headline cell (20 passages, most noise); default: as --limit.",
        ),
    ] = None,
    rival_limit: Annotated[
        int | None,
        typer.Option("--rival-limit", help="Questions of the other methods in the other cells; default: as --limit."),
    ] = None,
    tune_limit: Annotated[int, typer.Option("--tune-limit", help="Dev questions to choose tuned methods by.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything that is drawn.")] = 0,
    grading: Annotated[
        Grading | None,
        typer.Option("--grading", help="What counts as right; default: what the profile was fitted by."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.")] = 32,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Questions in one forward pass.")] = 16,
    workers: Annotated[int, typer.Option("--workers", help="Processes, each with one thread; needs a CPU.")] = 1,
    device: DeviceOption = None,
    template: TemplateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare focusing with the bare model and every rival; an interrupted run goes on when it is run again.

    Example: focus-rag eval --model Qwen/Qwen2.5-7B-Instruct --profile ./profile --data questions.jsonl --out ./evidence
    """
    from focus_rag.errors import InvalidInputError
    from focus_rag.evaluation.runner import evaluate
    from focus_rag.evaluation.settings import EvalSettings

    whole = (limit, main_limit or limit, rival_limit or limit, tune_limit, max_new_tokens, batch_size, workers)
    if min(whole) < 1 or 0 in (main_limit, rival_limit):
        raise InvalidInputError("The limits, --max-new-tokens, --batch-size and --workers must be at least 1.")
    chosen: dict[str, Any] = {} if methods is None else {"methods": tuple(methods.split(";"))}
    settings = EvalSettings(
        **chosen,
        counts=_counts(counts),
        noises=(None,) if noise is None else _noises(noise),
        positions=("first", "middle", "last") if positions else (),
        gold_missing=gold_missing,
        shuffled_scores=shuffled_scores,
        without_scores=without_scores,
        limit=limit,
        main_limit=main_limit,
        rival_limit=rival_limit,
        tune_limit=tune_limit,
        seed=seed,
        grading=grading,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    _require_used(data, dev, docs, rich, score_kind)
    source = _source(data, docs, rich, score_kind)
    for_dev = None if dev is None else _source(dev, docs, rich, score_kind)
    for reason, places in getattr(source, "skipped", {}).items():
        note(f"left out: {reason} ({_some(places)})")
    generator = load_generator(model, profile, device, template=template)
    with progress() as bar:
        task = bar.add_task("", total=None)

        def report(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total)

        evaluation = evaluate(generator, source, out, settings, dev=for_dev, workers=workers, progress=report)
    for reason, n in evaluation.run["left_out"].items():
        if reason not in getattr(source, "skipped", {}):
            note(f"left out: {reason} ({n})")
    for name, why in evaluation.skipped.items():
        note(f"not run: {name} ({why})")
    from focus_rag.evaluation.report import write_report

    page = write_report(evaluation, out)
    if as_json:
        write_json(evaluation.summary())
    else:
        _show(evaluation)
        typer.echo(f"{page} has all cells, pictures and what each method does")


def _some(places: Sequence[str], most: int = 5) -> str:
    """The first places and how many more there are."""
    more = len(places) - most
    return ", ".join(places[:most]) + (f" and {more} more" if more > 0 else "")


def _require_used(
    data: Path | None, dev: Path | None, docs: Path | None, rich: float, score_kind: ScoreKind | None
) -> None:
    """Refuse an option that the questions asked would leave unread."""
    from focus_rag.errors import InvalidInputError

    has_files = data is not None or dev is not None
    if docs is not None and not has_files:
        raise InvalidInputError("--docs are what the questions of --data are about; give them too, or leave it out.")
    if score_kind is not None and not has_files:
        raise InvalidInputError("--score-kind says what the scores of --data are; give them too, or leave it out.")
    if data is not None and rich:
        raise InvalidInputError("--rich is for the generated questions; leave it out with --data.")


def _source(data: Path | None, docs: Path | None, rich: float, score_kind: ScoreKind | None) -> CaseSource:
    from focus_rag.evaluation.cases import EmbeddedCases
    from focus_rag.evaluation.datasets import load_cases

    return EmbeddedCases(rich=rich) if data is None else load_cases(data, documents=docs, score_kind=score_kind)


def _counts(text: str) -> tuple[int | None, ...]:
    from focus_rag.errors import InvalidInputError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise InvalidInputError(
            f"--counts takes whole numbers above 0 with commas between them, or 'all'; got {text!r}."
        )
    return tuple(None if part == "all" else int(part) for part in parts)


def _noises(text: str) -> tuple[float, ...]:
    from focus_rag.errors import InvalidInputError

    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0.0 <= one <= 1.0 for one in found):
        raise InvalidInputError(f"--noise takes numbers from 0 to 1 with commas between them; got {text!r}.")
    return found


def _show(evaluation: Evaluation) -> None:
    from focus_rag.evaluation.results import BARE

    cell = evaluation.main_cell
    rows = []
    for method in evaluation.reported_methods:
        interval = evaluation.interval(cell, method)
        if interval.n:
            difference = evaluation.difference(cell, method, BARE)
            rows.append(
                [
                    f"{method} *" if method in evaluation.bounds else method,
                    str(interval.n),
                    f"{interval.mean:.1%}",
                    f"{interval.low:.1%} to {interval.high:.1%}",
                    f"{100 * difference.mean:+.1f}" if difference.n else "-",
                    f"{difference.p:.3f}" if difference.n else "-",
                ]
            )
    typer.echo(f"{cell}, {evaluation.most_questions(cell)} questions (* is told which passages are gold)")
    write_table(
        ["method", "n", "quality", "95%", "against bare", "p"], rows, numbers=["n", "quality", "against bare", "p"]
    )
