"""Run methods over cells: resumable, seeded, the same numbers again for the same seed."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from focus_rag import __version__
from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.answering import Answering, Progress, Task
from focus_rag.evaluation.cases import Case, CaseSource, Cell, EmbeddedCases, FileCases, cells_of
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods import Method, Tuned, every_name, methods_named
from focus_rag.evaluation.results import (
    AUTO,
    BARE,
    BEST_FIXED,
    DIRECTIONS,
    GOLD_ONLY,
    RANDOM_HEADS,
    SPLIT_GOLD,
    SPLIT_TUNED,
    AnswerLog,
    Evaluation,
)
from focus_rag.evaluation.speed import measure_speed
from focus_rag.evaluation.workers import check_workers
from focus_rag.fitting.grading import Grading
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile
from focus_rag.whole_files import write_whole

DEV = "dev"
RUN, ANSWERS, SPEED = "run.json", "answers.jsonl", "speed.json"
CORE = (BARE, GOLD_ONLY, AUTO, DIRECTIONS, BEST_FIXED, RANDOM_HEADS, SPLIT_GOLD, SPLIT_TUNED)
"""Methods that the headline is about; the others can be given fewer questions."""

FITTED_ON = "the profile was fitted on it"
TOO_LONG = "the question alone does not fit the model's window"

_DEV_PART = 5  # of a file without dev questions of its own, one question in so many is for choosing


class EvalSettings(BaseModel):
    """What is run.

    Attributes:
        methods: Names of the methods.
        counts: Passages per question.
        noises: Shares of hard distractors; None leaves the passages as they come.
        positions: Gold positions to run in the headline cell.
        gold_missing: Whether to run the headline cell without its gold passages.
        shuffled_scores: Whether to run the headline cell with scores dealt out at random.
        without_scores: Whether to run it without scores, as with a retriever that hands on none.
        main_count: Passages of the headline cell, at the highest noise; the largest count if it is not among the counts.
        limit: Questions in a cell.
        main_limit: Questions in the headline cell for the methods that it is about (`CORE`); None is the same.
        rival_limit: Questions in every other cell for the other methods; None is the same.
        tune_limit: Dev questions by which tuned methods are chosen.
        speed_questions: Questions asked one by one to measure speed; 0 leaves it out.
        seed: Of everything that is drawn.
        grading: What counts as right: `contains` is the substring match. None: as the profile was fitted, and `contains` without one.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Questions in one forward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(default_factory=every_name)
    counts: tuple[int | None, ...] = (1, 5, 10, 20)
    noises: tuple[float | None, ...] = (None,)
    positions: tuple[Literal["first", "middle", "last"], ...] = ()
    gold_missing: bool = False
    shuffled_scores: bool = False
    without_scores: bool = False
    main_count: int | None = 20
    limit: int | None = Field(default=300, ge=1)
    main_limit: int | None = Field(default=None, ge=1)
    rival_limit: int | None = Field(default=None, ge=1)
    tune_limit: int = Field(default=100, ge=1)
    speed_questions: int = Field(default=5, ge=0)
    seed: int = 0
    grading: Grading | None = None
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=16, ge=1)

    def grading_of(self, profile: FocusProfile | None) -> Grading:
        """What counts as right."""
        fitted = None if profile is None else profile.report.get("grading")
        return self.grading or ("exact" if fitted == "exact" else "contains")

    def limit_of(self, method: str, *, is_main: bool) -> int | None:
        """Questions that a method answers in a cell."""
        if is_main:
            return self.main_limit or self.limit if method in CORE else self.limit
        return self.limit if method in CORE else self.rival_limit or self.limit


@dataclass(frozen=True)
class _Plan:
    """The cells that have questions, with their questions.

    Attributes:
        cases: By cell, in order.
        main: The headline cell.
        empty: Cells that have none.
    """

    cases: Mapping[Cell, tuple[Case, ...]]
    main: Cell
    empty: tuple[Cell, ...]


def evaluate(
    generator: FocusGenerator,
    source: CaseSource,
    out: str | Path,
    settings: EvalSettings | None = None,
    *,
    dev: CaseSource | None = None,
    workers: int = 1,
    progress: Progress = lambda label, done, total: None,
) -> Evaluation:
    """Answer every cell's questions by every method, and write the answers to `out/answers.jsonl`.

    An interrupted run goes on where it stopped, and ends with the same file. Questions that the profile was fitted on, and
    those that alone do not fit the window, are neither reported on nor chosen by; `run["left_out"]` counts them.

    Args:
        generator: Model and profile. Without a profile the methods that need one are left out.
        source: Where the questions are from.
        out: Folder of the run.
        settings: What to run.
        dev: Questions to choose tuned methods by; by default the dev split of the generated world, or one question in
            five of a file, which then is not reported on. A question that is reported on is never used to choose; where no
            other is left, tuned methods are left out.
        workers: Processes that answer at the same time, each with one thread.
        progress: Called with a label, answers done and answers in all.

    Raises:
        InvalidInputError: The folder holds another run or cannot be made, no cell has a question, or there cannot be so many workers.
    """
    settings = settings or EvalSettings()
    asked = methods_named(settings.methods)
    check_workers(workers, generator.model)
    engine = Engine(generator, max_new_tokens=settings.max_new_tokens)
    screen = _Screen(engine)
    for asked_from in (source, dev):
        screen.count(asked_from)
    source, dev = _split(source, dev)
    plan = _plan(source, settings, screen)
    dev_cases = _dev_cases(dev, plan, settings, screen)
    usable, skipped = _usable(generator, asked, bool(dev_cases))
    skipped |= {f"the cell {cell.key}": "no question has the passages for it" for cell in plan.empty}
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{folder} cannot be the folder of the run ({error.strerror or error}); give another one.") from error
    run = _describe(generator, source, dev, settings, plan, dev_cases, screen.left_out)
    _claim(folder / RUN, run)
    log = AnswerLog(folder / ANSWERS)

    trials = {
        candidate.name: Task(candidate.name, candidate, DEV, dev_cases)
        for one in usable
        if isinstance(one, Tuned)
        for candidate in one.candidates
    }

    def answering(total: int) -> Answering:
        return Answering(
            engine,
            log,
            total,
            batch_size=settings.batch_size,
            workers=workers,
            grading=settings.grading_of(generator.profile),
            progress=progress,
        )

    answering(len(trials) * len(dev_cases)).run(list(trials.values()), "choosing")
    chosen, choices = _choose(usable, log, dev_cases)
    tasks = {
        cell: [
            Task(name, method, cell.key, cases[: settings.limit_of(name, is_main=cell == plan.main)])
            for name, method in chosen
        ]
        for cell, cases in plan.cases.items()
    }
    reported = [task for of_cell in tasks.values() for task in of_cell]
    report = answering(sum(len(task.cases) for task in reported))
    for of_cell in tasks.values():
        report.run(of_cell, "answering")
    log.rewrite([key for task in [*trials.values(), *reported] for key in task.keys])
    speed = _speed(engine, chosen, plan.cases[plan.main], settings, folder / SPEED, progress)
    return Evaluation(
        records=tuple(log.records[key] for task in reported for key in task.keys),
        cells=tuple(cell.key for cell in plan.cases),
        methods=tuple(name for name, _ in chosen),
        main_cell=plan.main.key,
        run=run,
        notes={name: method.note for name, method in chosen},
        oracles=frozenset(name for name, method in chosen if method.oracle),
        choices=choices,
        skipped=skipped,
        speed=speed,
    )


class _Screen:
    """Admits the questions that can be asked and that the profile was not fitted on, and counts the others by reason.

    Args:
        engine: What answers, with its profile.
    """

    def __init__(self, engine: Engine) -> None:
        provenance = {} if engine.profile is None else engine.profile.provenance
        lists = [names for entry in ("trained_on", "chosen_on") if isinstance(names := provenance.get(entry), list)]
        self._fitted_on = {str(name) for names in lists for name in names}
        self._engine = engine
        self._reasons: dict[str, str | None] = {}

    def admits(self, case: Case) -> bool:
        """Whether a case is to be asked."""
        key = case.example.key
        if key not in self._reasons:
            # A profile names an example by the first twelve digits of its key.
            is_known = key[:12] in self._fitted_on
            self._reasons[key] = FITTED_ON if is_known else None if self._engine.fits(case) else TOO_LONG
        return self._reasons[key] is None

    def count(self, source: CaseSource | None) -> None:
        """Look at every question of a file, so that the count does not depend on which ones are drawn."""
        for case in source.all if isinstance(source, FileCases) else ():
            self.admits(case)

    @property
    def left_out(self) -> dict[str, int]:
        """Number of questions that were not admitted, by reason."""
        return dict(Counter(reason for reason in self._reasons.values() if reason is not None))

    @property
    def told(self) -> str:
        """The same in words, to follow a sentence; empty where all were admitted."""
        reasons = "; ".join(f"{reason} ({n})" for reason, n in self.left_out.items())
        return f" Left out: {reasons}." if reasons else ""


def _split(source: CaseSource, dev: CaseSource | None) -> tuple[CaseSource, CaseSource | None]:
    """What is reported on, and what tuned methods are chosen by; None where nothing is left for that."""
    if dev is not None:
        return source, dev
    if not isinstance(source, FileCases):
        return source, EmbeddedCases("dev", source.rich if isinstance(source, EmbeddedCases) else 0.0)
    # By the question's hash, so that a question falls on the same side in every file.
    is_dev = [int(case.example.key, 16) % _DEV_PART == 0 for case in source.all]
    for_dev = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if chosen)
    rest = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if not chosen)
    if not for_dev or not rest:
        return source, None
    return (
        FileCases(source.name, rest, source.skipped),
        FileCases(f"one question in {_DEV_PART} of {source.name}", for_dev, {}),
    )


def _first(
    source: CaseSource, cell: Cell, limit: int | None, seed: int, is_wanted: Callable[[Case], bool]
) -> tuple[Case, ...]:
    """The first `limit` wanted questions of a cell: more are drawn for those that are not, as long as that brings new ones."""
    factor, known = 1, set[str]()
    while True:
        drawn = source.cases(cell, None if limit is None else factor * limit, seed)
        found = tuple(case for case in drawn if is_wanted(case))
        keys = {case.example.key for case in drawn}
        if limit is None or len(found) >= limit or len(found) == len(drawn) or keys == known:
            return found[:limit]
        factor, known = 2 * factor, keys


def _plan(source: CaseSource, settings: EvalSettings, screen: _Screen) -> _Plan:
    """The questions of every cell; the headline cell is the one of `main_count` passages and most noise that has any.

    Raises:
        InvalidInputError: No cell has a question.
    """
    found: dict[Cell, tuple[Case, ...]] = {}
    most = max(settings.limit or 0, settings.main_limit or 0) if settings.limit else None

    def fill(cells: Iterable[Cell]) -> None:
        found.update({cell: _first(source, cell, most, settings.seed, screen.admits) for cell in cells if cell not in found})

    grid = cells_of(settings.counts, settings.noises)
    fill(grid)
    usable = [cell for cell in grid if found[cell]]
    if not usable:
        raise InvalidInputError(
            f"{source.name} has no question for any of the cells {', '.join(cell.key for cell in grid)}: lower --counts, or "
            f"take the passages as they come (--counts all).{screen.told}"
        )
    main = max(usable, key=lambda cell: (cell.count == settings.main_count, cell.count or 0, cell.noise or 0.0))
    fill(
        cells_of(
            settings.counts, settings.noises, settings.positions,
            main=main, gold_missing=settings.gold_missing, shuffled_scores=settings.shuffled_scores, without_scores=settings.without_scores,
        )
    )  # fmt: skip
    cases = {
        cell: some if cell == main else some[: settings.limit] for cell, some in found.items() if some
    }
    return _Plan(cases, main, tuple(cell for cell, some in found.items() if not some))


def _dev_cases(dev: CaseSource | None, plan: _Plan, settings: EvalSettings, screen: _Screen) -> tuple[Case, ...]:
    if dev is None:
        return ()
    reported = {case.example.key for cases in plan.cases.values() for case in cases}
    return _first(
        dev, plan.main, settings.tune_limit, settings.seed + 1,
        lambda case: case.example.key not in reported and screen.admits(case),
    )  # fmt: skip


def _usable(
    generator: FocusGenerator, asked: Sequence[Method | Tuned], can_choose: bool
) -> tuple[list[Method | Tuned], dict[str, str]]:
    """The methods that can run, and why the others cannot."""
    usable: list[Method | Tuned] = []
    skipped: dict[str, str] = {}
    for one in asked:
        needs_profile = any(method.needs_profile for method in (one.candidates if isinstance(one, Tuned) else (one,)))
        if needs_profile and generator.profile is None:
            skipped[one.name] = "it needs a focus profile, and the model has none"
        elif isinstance(one, Tuned) and not can_choose:
            skipped[one.name] = "untuned: no question is left to choose it by that is neither reported on nor left out; give more, or --dev"
        else:
            usable.append(one)
    return usable, skipped


def _choose(
    asked: Sequence[Method | Tuned], log: AnswerLog, dev_cases: Sequence[Case]
) -> tuple[list[tuple[str, Method]], dict[str, Any]]:
    """Every method with the name it is reported by; of tuned ones the best candidate, the first among equals."""
    chosen: list[tuple[str, Method]] = []
    choices: dict[str, Any] = {}
    for one in asked:
        if not isinstance(one, Tuned):
            chosen.append((one.name, one))
            continue
        means = {
            candidate.name: sum(log.records[DEV, candidate.name, case.id]["scores"]["quality"] for case in dev_cases)
            / len(dev_cases)
            for candidate in one.candidates
        }
        best = max(one.candidates, key=lambda candidate: means[candidate.name])
        chosen.append((one.name, best))
        choices[one.name] = {
            "chosen": best.name,
            "questions": len(dev_cases),
            "on_dev": {name: round(mean, 4) for name, mean in means.items()},
        }
    return chosen, choices


def _describe(
    generator: FocusGenerator,
    source: CaseSource,
    dev: CaseSource | None,
    settings: EvalSettings,
    plan: _Plan,
    dev_cases: Sequence[Case],
    screened: Mapping[str, int],
) -> dict[str, Any]:
    """What the answers depend on, and what else a reader needs to repeat the run."""
    profile = generator.profile
    left_out: Mapping[str, Sequence[str]] = getattr(source, "skipped", {})
    return {
        "model": generator.model_name,
        "profile": None
        if profile is None
        else {
            "heads": [[entry.layer, entry.head, entry.score] for entry in profile.heads],
            "site": profile.site,
            "passages_at": profile.passages_at,
            "policy": profile.policy.model_dump(mode="json"),
            "split": None if profile.split is None else profile.split.model_dump(mode="json"),
        },
        "data": source.name,
        "left_out": {reason: len(places) for reason, places in left_out.items()} | dict(screened),
        "dev_data": dev.name if dev is not None and dev_cases else None,
        "settings": settings.model_dump(mode="json"),
        "grading": settings.grading_of(profile),
        "dtype": str(next(generator.model.parameters()).dtype),
        "weights": generator.identity,
        "tokenizer": _tokenizer_hash(generator.tokenizer),
        "layout": generator.prompts.layout.model_dump(mode="json"),
        "window": generator.context_window,
        "questions": _questions_hash([*plan.cases.values(), dev_cases]),
        "versions": {
            "focus_rag": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "rouge-score": _version("rouge-score"),
        },
    }


def _tokenizer_hash(tokenizer: Any) -> str:
    """Of the vocabulary and of the chat template: both decide what the model is shown."""
    whole = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:16]


def _questions_hash(groups: Sequence[Sequence[Case]]) -> str:
    digest = hashlib.sha256()
    for cases in groups:
        for case in cases:
            one = case.example
            whole = (case.id, one.question, one.answers, one.passages, sorted(one.gold), one.score_kind, case.wrong_answers)
            digest.update(repr(whole).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _claim(file: Path, run: dict[str, Any]) -> None:
    """Write what the run is, or check that the folder's is the same one.

    Raises:
        InvalidInputError: It is another one, or the folder holds results of which nothing says what they are of.
    """
    text = json.dumps(run, indent=2, sort_keys=True) + "\n"
    if file.exists():
        known = _read(file)
        differing = sorted(name for name in {*known, *run} if known.get(name) != json.loads(text).get(name))
        if differing:
            raise InvalidInputError(
                f"{file.parent} holds a run that differs in {', '.join(differing)}; give another folder, or delete it."
            )
        return
    results = [name for name in (ANSWERS, SPEED) if (file.parent / name).exists()]
    if results:
        raise InvalidInputError(
            f"{file.parent} holds {' and '.join(results)} without the {file.name} that says of which model and questions; delete "
            f"{'it' if len(results) == 1 else 'them'}, or give another folder."
        )
    write_whole(file, text)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier run wrote.

    Raises:
        InvalidInputError: It is something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        which = f"it, {ANSWERS} and {SPEED}" if file.name == RUN else "it"
        raise InvalidInputError(f"{file} is damaged ({error}); delete {which}, or give another folder.") from error
    if not isinstance(found, dict):
        raise InvalidInputError(f"{file} is not of an evaluation; give another folder.")
    return found


def _speed(
    engine: Engine,
    chosen: Sequence[tuple[str, Method]],
    cases: Sequence[Case],
    settings: EvalSettings,
    file: Path,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Speed by method, in a file of its own: timings differ from run to run, answers do not."""
    if not settings.speed_questions:
        return {}
    known: dict[str, dict[str, float]] = _read(file) if file.exists() else {}
    for done, (name, method) in enumerate(chosen, start=1):
        if name not in known:
            known[name] = measure_speed(engine, method, cases[: settings.speed_questions])
        progress(f"speed: {name}", done, len(chosen))
    write_whole(file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return known
