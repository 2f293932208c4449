"""Run methods over cells: resumable, seeded, the same numbers again for the same seed."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import local
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.cases import Case, CaseSource, Cell, EmbeddedCases, FileCases, cells_of
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods import Method, Tuned, every_name, methods_named
from focus_rag.evaluation.metrics import text_scores
from focus_rag.evaluation.results import AnswerLog, Evaluation, Key, Record
from focus_rag.evaluation.speed import measure_speed
from focus_rag.generator import FocusGenerator

Progress = Callable[[str, int, int], None]

_DEV = "dev"
_DEV_PART = 5  # of a file without dev questions of its own, one question in so many is for choosing


class EvalSettings(BaseModel):
    """What is run.

    Attributes:
        methods: Names of the methods.
        counts: Passages per question.
        noises: Shares of hard distractors; None leaves the passages as they come.
        positions: Gold positions to run at the largest count.
        gold_missing: Whether to run questions without their gold passage, at the largest count.
        shuffled_scores: Whether to run scores dealt out at random, at the largest count.
        main_count: Passages of the headline cell; the largest count if it is not among the counts.
        limit: Questions in a cell.
        main_limit: Questions in the headline cell; None is the same.
        tune_limit: Dev questions by which tuned methods are chosen.
        speed_questions: Questions asked one by one to measure speed; 0 leaves it out.
        seed: Of everything that is drawn.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Questions in one forward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = Field(default_factory=every_name)
    counts: tuple[int | None, ...] = (1, 5, 10, 20)
    noises: tuple[float | None, ...] = (None,)
    positions: tuple[str, ...] = ()
    gold_missing: bool = False
    shuffled_scores: bool = False
    main_count: int | None = 20
    limit: int | None = Field(default=300, ge=1)
    main_limit: int | None = Field(default=None, ge=1)
    tune_limit: int = Field(default=100, ge=1)
    speed_questions: int = Field(default=5, ge=0)
    seed: int = 0
    max_new_tokens: int = Field(default=32, ge=1)
    batch_size: int = Field(default=16, ge=1)

    def cells(self) -> tuple[Cell, ...]:
        """The cells of the run."""
        return cells_of(
            self.counts,
            self.noises,
            self.positions,
            gold_missing=self.gold_missing,
            shuffled_scores=self.shuffled_scores,
        )

    def main_cell(self) -> Cell:
        """The headline cell: the main count at the highest noise."""
        known = [count for count in self.counts if count is not None]
        count = self.main_count if self.main_count in known else max(known, default=None)
        noise = max((one for one in self.noises if one is not None), default=None)
        return Cell(count=count, noise=noise)


@dataclass(frozen=True, slots=True)
class _Task:
    """One method over one cell. Answers are logged under `name`, which for tuned methods is not the candidate's."""

    name: str
    method: Method
    cell: str
    cases: tuple[Case, ...]

    def chunks(self, size: int) -> Iterator[tuple[Case, ...]]:
        for start in range(0, len(self.cases), size):
            yield self.cases[start : start + size]

    @property
    def keys(self) -> list[Key]:
        return [(self.cell, self.name, case.id) for case in self.cases]


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

    An interrupted run goes on where it stopped, and ends with the same file.

    Args:
        generator: Model and profile. Without a profile the methods that need one are left out.
        source: Where the questions are from.
        out: Folder of the run.
        settings: What to run.
        dev: Questions to choose tuned methods by; by default the dev split of the generated world, or one question in
            five of a file, which then is not reported on.
        workers: Threads that answer at the same time; the numbers do not depend on it.
        progress: Called with a label, batches done and batches in all.

    Raises:
        InvalidInputError: The folder holds another run, or a cell has no question.
    """
    settings = settings or EvalSettings()
    asked = methods_named(settings.methods)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    source, dev = _split(source, dev)
    run = _describe(generator, source, dev, settings)
    _claim(folder / "run.json", run)
    log = AnswerLog(folder / "answers.jsonl")
    usable = [one for one in asked if generator.profile is not None or not _needs_profile(one)]
    skipped = {one.name: "it needs a focus profile, and the model has none" for one in asked if one not in usable}

    runner = _Runner(generator, settings, log, workers, progress)
    dev_cell = settings.main_cell()
    dev_cases = dev.cases(dev_cell, settings.tune_limit, settings.seed + 1)
    trials = [
        _Task(candidate.name, candidate, _DEV, dev_cases)
        for one in usable
        if isinstance(one, Tuned)
        for candidate in one.candidates
    ]
    runner.run(list({task.name: task for task in trials}.values()), "choosing")
    chosen, choices = _choose(usable, log, dev_cases)

    cells = settings.cells()
    main = settings.main_cell()
    tasks: list[_Task] = []
    for cell in cells:
        limit = settings.main_limit if cell == main and settings.main_limit else settings.limit
        cases = source.cases(cell, limit, settings.seed)
        if not cases:
            raise InvalidInputError(
                f"{source.name} has no question for the cell {cell.key!r}: fewer passages, or other data, are needed."
            )
        tasks += [_Task(name, method, cell.key, cases) for name, method in chosen]
    runner.run(tasks, "answering")
    log.rewrite([key for task in [*{t.name: t for t in trials}.values(), *tasks] for key in task.keys])
    speed = _speed(generator, chosen, source, main, settings, folder / "speed.json", progress)
    return Evaluation(
        records=tuple(log.records[key] for task in tasks for key in task.keys),
        cells=tuple(cell.key for cell in cells),
        methods=tuple(name for name, _ in chosen),
        main_cell=main.key if main in cells else cells[-1].key,
        run=run,
        notes={name: method.note for name, method in chosen},
        oracles=frozenset(name for name, method in chosen if method.oracle),
        choices=choices,
        skipped=skipped,
        speed=speed,
    )


class _Runner:
    """Works off tasks, batch by batch, leaving out what is answered already."""

    def __init__(
        self, generator: FocusGenerator, settings: EvalSettings, log: AnswerLog, workers: int, progress: Progress
    ) -> None:
        self._generator, self._settings, self._log = generator, settings, log
        self._workers, self._progress = max(workers, 1), progress
        self._here = local()

    def run(self, tasks: Sequence[_Task], label: str) -> None:
        self._reuse(tasks)
        todo = [
            (task, chunk)
            for task in tasks
            for chunk in task.chunks(self._settings.batch_size)
            if not self._log.has(task.cell, task.name, (case.id for case in chunk))
        ]
        done, total = 0, len(todo)
        # A chosen candidate may be in the plan by its own name, too; then its answers are copied once they are there.
        own_names = {task.method.name for task in tasks if task.name == task.method.name}
        todo = [(t, chunk) for t, chunk in todo if t.name == t.method.name or t.method.name not in own_names]
        with ThreadPoolExecutor(self._workers) as pool:
            for task, _ in pool.map(self._answer, todo):
                done += 1
                self._progress(f"{label}: {task.cell}, {task.name}", done, total)
        self._reuse(tasks)

    def _answer(self, work: tuple[_Task, tuple[Case, ...]]) -> tuple[_Task, int]:
        task, chunk = work
        if not hasattr(self._here, "engine"):
            self._here.engine = Engine(self._generator, max_new_tokens=self._settings.max_new_tokens)
        answered = task.method.answer(self._here.engine, chunk)
        self._log.append([_record(task, case, one) for case, one in zip(chunk, answered, strict=True)])
        return task, len(chunk)

    def _reuse(self, tasks: Sequence[_Task]) -> None:
        for task in tasks:
            if task.name == task.method.name or self._log.has(task.cell, task.name, (case.id for case in task.cases)):
                continue
            found = [self._log.records.get((task.cell, task.method.name, case.id)) for case in task.cases]
            if all(one is not None for one in found):
                self._log.append([{**one, "method": task.name} for one in found if one is not None])


def _record(task: _Task, case: Case, answered: Answered) -> Record:
    shown = answered.case.example
    source_correct: bool | None = None
    if answered.shares and case.example.gold and len(case.example.passages) > 1:
        best = max(range(len(answered.shares)), key=lambda index: answered.shares[index])
        source_correct = best in shown.gold
    scores = text_scores(answered.text, case.example.answers, abstain=case.abstain, wrong=case.wrong_answers)
    return {
        "cell": task.cell,
        "method": task.name,
        "setting": task.method.name,
        "id": case.id,
        "question": case.example.question,
        "answers": list(case.example.answers),
        "text": answered.text,
        "alpha": round(answered.alpha, 6),
        "scores": {name: round(value, 6) for name, value in scores.items()},
        "prompt_tokens": answered.prompt_tokens,
        "answer_tokens": answered.answer_tokens,
        "gold": sorted(shown.gold),
        "n_passages": len(shown.passages),
        "shares": [round(share, 5) for share in answered.shares],
        "gold_mass": _rounded(answered.gold_mass),
        "sink_mass": _rounded(answered.sink_mass),
        "source_correct": source_correct,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _needs_profile(one: Method | Tuned) -> bool:
    return any(method.needs_profile for method in one.candidates) if isinstance(one, Tuned) else one.needs_profile


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
            candidate.name: sum(log.records[_DEV, candidate.name, case.id]["scores"]["quality"] for case in dev_cases)
            / max(len(dev_cases), 1)
            for candidate in one.candidates
        }
        best = max(one.candidates, key=lambda candidate: means[candidate.name])
        chosen.append((one.name, best))
        choices[one.name] = {"chosen": best.name, "on_dev": {name: round(mean, 4) for name, mean in means.items()}}
    return chosen, choices


def _split(source: CaseSource, dev: CaseSource | None) -> tuple[CaseSource, CaseSource]:
    if dev is not None:
        return source, dev
    if isinstance(source, FileCases):
        # By the question's hash, so that a question falls on the same side in every file.
        is_dev = [int(case.example.key, 16) % _DEV_PART == 0 for case in source.all]
        for_dev = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if chosen)
        rest = tuple(case for case, chosen in zip(source.all, is_dev, strict=True) if not chosen)
        if for_dev and rest:
            return (
                FileCases(source.name, rest, source.skipped),
                FileCases(f"one question in {_DEV_PART} of {source.name}", for_dev, {}),
            )
        return source, source
    return source, EmbeddedCases("dev", source.rich if isinstance(source, EmbeddedCases) else 0.0)


def _describe(generator: FocusGenerator, source: CaseSource, dev: CaseSource, settings: EvalSettings) -> dict[str, Any]:
    profile = generator.profile
    return {
        "model": generator.model_name,
        "profile": None
        if profile is None
        else {
            "heads": [[entry.layer, entry.head, entry.score] for entry in profile.heads],
            "site": profile.site,
            "policy": profile.policy.model_dump(mode="json"),
        },
        "data": source.name,
        "left_out": dict(getattr(source, "skipped", {})),
        "dev_data": dev.name,
        "settings": settings.model_dump(mode="json"),
        "dtype": str(next(generator.model.parameters()).dtype),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "rouge-score": _version("rouge-score"),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _claim(file: Path, run: dict[str, Any]) -> None:
    """Write what the run is, or check that the folder's is the same one."""
    text = json.dumps(run, indent=2, sort_keys=True) + "\n"
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != json.loads(text):
            raise InvalidInputError(
                f"{file.parent} holds a run with other settings, data, model or versions; give another folder, or delete it."
            )
        return
    file.write_text(text, encoding="utf-8")


def _speed(
    generator: FocusGenerator,
    chosen: Sequence[tuple[str, Method]],
    source: CaseSource,
    cell: Cell,
    settings: EvalSettings,
    file: Path,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Speed by method, in a file of its own: timings differ from run to run, answers do not."""
    if not settings.speed_questions:
        return {}
    known: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    cases = source.cases(cell, settings.speed_questions, settings.seed)
    engine = Engine(generator, max_new_tokens=settings.max_new_tokens)
    for done, (name, method) in enumerate(chosen, start=1):
        if name not in known:
            known[name] = measure_speed(engine, method, cases)
        progress(f"speed: {name}", done, len(chosen))
    file.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return known
