"""Answering what a run has planned: each different prompt once, in batches of similar length, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from focus_rag.evaluation.cases import Case
from focus_rag.evaluation.engine import Answered, Engine
from focus_rag.evaluation.methods import Method
from focus_rag.evaluation.metrics import text_scores
from focus_rag.evaluation.results import AnswerLog, Key, Record
from focus_rag.evaluation.workers import spread
from focus_rag.fitting.grading import Grading

Progress = Callable[[str, int, int], None]
Batch = tuple["Task", tuple[Case, ...]]


@dataclass(frozen=True, slots=True)
class Task:
    """One method over one cell. Answers are logged under `name`, which for tuned methods is not the candidate's."""

    name: str
    method: Method
    cell: str
    cases: tuple[Case, ...]

    @property
    def keys(self) -> list[Key]:
        return [(self.cell, self.name, case.id) for case in self.cases]


class Answering:
    """Works off tasks and logs their answers.

    Two tasks may ask the same: auto where its alpha is 0 is the bare model, a tuned method is one of its candidates,
    gold alone is the same at every noise. What was asked before in this plan is copied, not asked again. Who asks
    first, and with whom a question shares its batch, follows from the plan alone, never from what is answered already:
    so a run that was interrupted ends with the same answers.

    Args:
        engine: Answers batches.
        log: Where answers go.
        total: Answers in all, for the progress.
        batch_size: Questions in one forward pass.
        workers: Processes that answer at the same time.
        grading: What counts as right.
        progress: Called with a label, answers done and answers in all.
    """

    def __init__(
        self,
        engine: Engine,
        log: AnswerLog,
        total: int,
        *,
        batch_size: int,
        workers: int,
        grading: Grading,
        progress: Progress,
    ) -> None:
        self._engine, self._log, self._grading = engine, log, grading
        self._batch_size, self._workers, self._progress = batch_size, workers, progress
        self._first: dict[tuple[Any, ...], Key] = {}
        self._done, self._total = 0, total

    def run(self, tasks: Sequence[Task], label: str) -> None:
        """Answer the tasks of a cell."""
        batches: list[Batch] = []
        copies: list[tuple[Task, Case, Key]] = []
        for task in tasks:
            own = []
            for case in task.cases:
                key: Key = (task.cell, task.name, case.id)
                ask = task.method.ask(self._engine, case)
                # Where the window is too small the scores decide which passages the model is shown.
                first = self._first.setdefault((ask.key, self._engine.dropped(ask.shown)), key)
                if first == key:
                    own.append(case)
                else:
                    copies.append((task, case, first))
            batches += [(task, chunk) for chunk in _of_similar_length(own, self._batch_size)]
        todo = [(task, chunk) for task, chunk in batches if not self._has(task, chunk)]
        self._done += sum(len(chunk) for _, chunk in batches) - sum(len(chunk) for _, chunk in todo)
        for (task, chunk), records in spread(todo, self._answer, self._workers):
            self._log.append(records)
            self._done += len(chunk)
            self._progress(f"{label}: {task.cell}, {task.name}", self._done, self._total)
        self._log.append(
            [
                _copied(task, case, self._log.records[first], self._grading)
                for task, case, first in copies
                if not self._has(task, (case,))
            ]
        )
        self._done += len(copies)

    def _has(self, task: Task, cases: Sequence[Case]) -> bool:
        return self._log.has(task.cell, task.name, (case.id for case in cases))

    def _answer(self, batch: Batch) -> list[Record]:
        task, chunk = batch
        answered = task.method.answer(self._engine, chunk)
        return [_record(task, case, one, self._grading) for case, one in zip(chunk, answered, strict=True)]


def _of_similar_length(cases: Sequence[Case], size: int) -> Iterator[tuple[Case, ...]]:
    """Batches of cases of similar length, the longest first: little padding, and memory runs short at once or never."""
    ordered = sorted(cases, key=lambda case: -sum(len(passage.content) for passage in case.example.passages))
    for start in range(0, len(ordered), size):
        yield tuple(ordered[start : start + size])


def _record(task: Task, case: Case, answered: Answered, grading: Grading) -> Record:
    shown = answered.case.example
    source_correct: bool | None = None
    # Where every passage shown is gold, or there is none, looking at gold is no achievement.
    if answered.shares and case.example.gold and len(shown.gold) < len(shown.passages):
        best = max(range(len(answered.shares)), key=lambda index: answered.shares[index])
        source_correct = best in shown.gold
    return {
        **_identity(task, case),
        "text": answered.text,
        "alpha": round(answered.alpha, 6),
        "scores": _scores(case, answered.text, grading),
        "prompt_tokens": answered.prompt_tokens,
        "answer_tokens": answered.answer_tokens,
        "gold": sorted(shown.gold),
        "n_passages": len(shown.passages),
        "shares": [round(share, 5) for share in answered.shares],
        "gold_mass": _rounded(answered.gold_mass),
        "sink_mass": _rounded(answered.sink_mass),
        "source_correct": source_correct,
        "confidence": _rounded(answered.confidence),
    }


def _copied(task: Task, case: Case, record: Record, grading: Grading) -> Record:
    """The record of the same answer to the same prompt, for another task."""
    return {**record, **_identity(task, case), "scores": _scores(case, record["text"], grading)}


def _identity(task: Task, case: Case) -> Record:
    return {
        "cell": task.cell,
        "method": task.name,
        "setting": task.method.name,
        "id": case.id,
        "question": case.example.question,
        "answers": list(case.example.answers),
    }


def _scores(case: Case, text: str, grading: Grading) -> dict[str, float]:
    scores = text_scores(text, case.example.answers, abstain=case.abstain, wrong=case.wrong_answers, grading=grading)
    return {name: round(value, 6) for name, value in scores.items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
