"""Run methods over cells: resumable, seeded, the same numbers again for the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.answering import Answering, Progress, Task
from focus_rag.evaluation.cases import Case, CaseSource
from focus_rag.evaluation.engine import Engine
from focus_rag.evaluation.methods import Method, Tuned, methods_named
from focus_rag.evaluation.questions import Screen, dev_questions, planned, reported_and_dev
from focus_rag.evaluation.results import AnswerLog, Evaluation
from focus_rag.evaluation.run_record import ANSWERS, RUN, SPEED, claim, described, read_object
from focus_rag.evaluation.settings import EvalSettings
from focus_rag.evaluation.speed import measure_speed
from focus_rag.evaluation.workers import check_workers
from focus_rag.generator import FocusGenerator
from focus_rag.whole_files import write_whole

DEV = "dev"


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

    An interrupted run goes on where it stopped, and ends with the same file. Questions that the profile was fitted on,
    and those that alone do not fit the window, are neither reported on nor chosen by; `run["left_out"]` counts them.

    Args:
        generator: Model and profile. Without a profile the methods that need one are left out.
        source: Where the questions are from.
        out: Folder of the run.
        settings: What to run.
        dev: Questions to choose tuned methods by; by default the dev split of the generated world, or one question in
            five of a file, which then is not reported on. A question that is reported on is never used to choose; where
            no other is left, tuned methods are left out.
        workers: Processes that answer at the same time, each with one thread.
        progress: Called with a label, answers done and answers in all.

    Raises:
        InvalidInputError: The folder holds another run or cannot be made, no cell has a question, or there cannot be so
            many workers.
    """
    settings = settings or EvalSettings()
    asked = methods_named(settings.methods)
    check_workers(workers, generator.model)
    engine = Engine(generator, max_new_tokens=settings.max_new_tokens)
    screen = Screen(engine)
    for asked_from in (source, dev):
        screen.count(asked_from)
    source, dev = reported_and_dev(source, dev)
    plan = planned(source, settings, screen)
    dev_cases = dev_questions(dev, plan, settings, screen)
    usable, skipped = _usable(generator, asked, bool(dev_cases))
    skipped |= {f"the cell {cell.key}": "no question has the passages for it" for cell in plan.empty}
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"{folder} cannot be the folder of the run ({error.strerror or error}); give another one."
        ) from error
    run = described(generator, source, dev, settings, plan, dev_cases, screen.left_out)
    claim(folder / RUN, run)
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
            skipped[one.name] = (
                "untuned: no question is left to choose it by that is neither reported on nor left out; give more, "
                "or --dev"
            )
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
    known: dict[str, dict[str, float]] = read_object(file) if file.exists() else {}
    for done, (name, method) in enumerate(chosen, start=1):
        if name not in known:
            known[name] = measure_speed(engine, method, cases[: settings.speed_questions])
        progress(f"speed: {name}", done, len(chosen))
    write_whole(file, json.dumps(known, indent=2, sort_keys=True) + "\n")
    return known
