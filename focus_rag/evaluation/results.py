"""Answers on disk, and what they add up to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.statistics import Difference, Interval, bootstrap_mean, paired_difference
from focus_rag.fitting.confidence_fitting import area_under_curve
from focus_rag.whole_files import write_whole

Record = dict[str, Any]
Key = tuple[str, str, str]

BARE, GOLD_ONLY, AUTO, BEST_FIXED = "bare", "gold only", "auto", "best fixed alpha"
DIRECTIONS = "directions alone"
RANDOM_HEADS, SPLIT_GOLD = "random heads", "split softmax, gold"
SPLIT_TUNED = "split softmax, gold, tau by dev"
BEST_OF_ALPHAS = "per-question best alpha"
THRESHOLDS = (0.1, 0.3, 0.5)
"""Of confidence, in reports."""
RATES = (
    "exact_match", "substring_match", "token_f1", "rouge_l", "abstained", "wrong_answer", "source_correct", "gold_mass",
    "sink_mass", "alpha",
)  # fmt: skip
"""Means that are reported beside quality, where they were measured."""


class AnswerLog:
    """A JSONL file of answers that survives being killed at any time.

    Args:
        file: The file; a line torn by a kill is cut off.

    Raises:
        InvalidInputError: The file holds something else.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.records: dict[Key, Record] = {}
        if file.exists():
            self._read()

    def _read(self) -> None:
        data = self._file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.write_bytes(whole)
        # Not splitlines: a line may hold other line separators.
        for line in whole.decode("utf-8").split("\n")[:-1]:
            try:
                record = json.loads(line)
                self.records[record["cell"], record["method"], record["id"]] = record
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InvalidInputError(f"{self._file} is not a file of answers; choose another folder.") from error

    def has(self, cell: str, method: str, ids: Iterable[str]) -> bool:
        """Whether all these questions are answered."""
        return all((cell, method, one) in self.records for one in ids)

    def append(self, records: Sequence[Record]) -> None:
        """Add the answers of one batch."""
        text = "".join(_line(record) for record in records)
        for record in records:
            self.records[record["cell"], record["method"], record["id"]] = record
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(text)

    def rewrite(self, order: Iterable[Key]) -> None:
        """Put the answers in the order of the plan, so that the file does not tell how often it was interrupted."""
        write_whole(self._file, "".join(_line(self.records[key]) for key in order))


def _line(record: Record) -> str:
    # Escaped, because UTF-8 has no half of a surrogate pair, and a question may.
    return json.dumps(record, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Evaluation:
    """All answers of a run.

    Attributes:
        records: The answers, in the order of the plan.
        cells: Keys of the cells, in order; the dev cell is not among them.
        methods: Names of the methods, in order.
        main_cell: The cell that the headline table shows.
        run: Settings, versions, model, data: what a reader needs to repeat it.
        notes: What each method does.
        oracles: Methods that are told which passages are gold.
        choices: Which candidate stands for a tuned method, and how all of them did on dev questions.
        skipped: Methods left out, and why.
        speed: Seconds to the first token, tokens a second and peak memory by method, where measured.
    """

    records: tuple[Record, ...]
    cells: tuple[str, ...]
    methods: tuple[str, ...]
    main_cell: str
    run: Mapping[str, Any]
    notes: Mapping[str, str]
    oracles: frozenset[str]
    choices: Mapping[str, Any]
    skipped: Mapping[str, str]
    speed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def _by_cell(self) -> dict[tuple[str, str], dict[str, Record]]:
        found: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
        for record in self.records:
            found[record["cell"], record["method"]][record["id"]] = record
        return found

    def answers(self, cell: str, method: str) -> dict[str, Record]:
        """Answers of one cell and method by question id."""
        return self._by_cell.get((cell, method), {})

    def quality(self, cell: str, method: str) -> dict[str, float]:
        """Quality by question id; the per-question best alpha is the best of bare and every positive alpha."""
        if method != BEST_OF_ALPHAS:
            return {key: record["scores"]["quality"] for key, record in self.answers(cell, method).items()}
        grids = [self.quality(cell, one) for one in self.alpha_methods if float(one[6:]) > 0]
        bare = self.quality(cell, BARE)
        if not grids:
            return {}
        return {
            key: max(value, *(grid[key] for grid in grids))
            for key, value in bare.items()
            if all(key in grid for grid in grids)
        }

    @property
    def alpha_methods(self) -> list[str]:
        """Fixed alphas, rising."""
        found = [name for name in self.methods if name.startswith("alpha=")]
        return sorted(found, key=lambda name: float(name[6:]))

    @property
    def compared_with_auto(self) -> list[str]:
        """What auto is held against: all that a user could do instead. Methods that are told the gold are bounds."""
        own = [AUTO, BEST_OF_ALPHAS, *self.alpha_methods]
        return [name for name in self.methods if name not in own and name not in self.oracles]

    @property
    def bounds(self) -> frozenset[str]:
        """Methods that know what nobody knows: which passages are gold, or which alpha will turn out best."""
        return self.oracles | {BEST_OF_ALPHAS}

    def most_questions(self, cell: str) -> int:
        """Questions of a cell that the method with most of them answered."""
        return max((self.interval(cell, method).n for method in self.reported_methods), default=0)

    def _by_question(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values by question id as means by question: HELMET has a question several times, and its copies are not
        independent.
        """
        found: dict[str, list[float]] = defaultdict(list)
        for one, value in values.items():
            found[self._question_of[one]].append(value)
        return {question: sum(some) / len(some) for question, some in found.items()}

    @cached_property
    def _question_of(self) -> dict[str, str]:
        return {record["id"]: " ".join(record["question"].split()) for record in self.records}

    def interval(self, cell: str, method: str) -> Interval:
        """Mean quality over questions with its bootstrap interval."""
        key = (cell, method)
        if key not in self._intervals:
            self._intervals[key] = bootstrap_mean(list(self._by_question(self.quality(cell, method)).values()))
        return self._intervals[key]

    def difference(self, cell: str, method: str, reference: str) -> Difference:
        """Paired difference in quality on the questions that both answered."""
        key = (cell, method, reference)
        if key not in self._differences:
            ours, theirs = self.quality(cell, method), self.quality(cell, reference)
            common = [one for one in ours if one in theirs]
            sides = [list(self._by_question({one: side[one] for one in common}).values()) for side in (ours, theirs)]
            self._differences[key] = paired_difference(*sides)
        return self._differences[key]

    # Resampling takes some hundredths of a second, and tables, pictures and JSON ask for the same figures.
    @cached_property
    def _intervals(self) -> dict[tuple[str, str], Interval]:
        return {}

    @cached_property
    def _differences(self) -> dict[tuple[str, str, str], Difference]:
        return {}

    @cached_property
    def _told(self) -> dict[str, dict[str, Any]]:
        return {}

    def mean(self, cell: str, method: str, name: str) -> float | None:
        """Mean of one of `RATES` over questions; None where it was not measured."""
        found = {}
        for one, record in self.answers(cell, method).items():
            value = record["scores"].get(name, record.get(name))
            if value is not None:
                found[one] = float(value)
        values = self._by_question(found).values()
        return sum(values) / len(values) if values else None

    def recovered(self, cell: str, method: str) -> float | None:
        """Share of the gap between bare and gold-only that a method closes, on the questions that all three answered;
        None where there is no gap to speak of.
        """
        all_three = [self.quality(cell, name) for name in (BARE, GOLD_ONLY, method)]
        shared = [one for one in all_three[-1] if all(one in side for side in all_three)]
        bare, gold, own = (self._by_question({one: side[one] for one in shared}) for side in all_three)
        common = list(own)
        gap = sum(gold[one] - bare[one] for one in common)
        if not common or gap < 0.01 * len(common):
            return None
        return sum(own[one] - bare[one] for one in common) / gap

    def telling(self, method: str) -> dict[str, Any]:
        """How confidence tells right answers of all cells from wrong ones; those that say nothing is stated are left
        out.

        Returns:
            Number of answers and of right ones, and where there are both, the area under the curve with its interval
            over questions, and the shares of right and of wrong answers below each of some thresholds; nothing where
            the profile does not tell how likely an answer is right.
        """
        if method not in self._told:
            self._told[method] = self._telling(method)
        return self._told[method]

    def _telling(self, method: str) -> dict[str, Any]:
        found = [
            record
            for cell in self.cells
            for record in self.answers(cell, method).values()
            if record.get("confidence") is not None and not record["scores"]["abstained"]
        ]
        if not found:
            return {}
        told = np.array([record["confidence"] for record in found])
        is_right = np.array([record["scores"]["quality"] == 1.0 for record in found])
        counted: dict[str, Any] = {"answers": len(found), "right": int(is_right.sum())}
        if is_right.all() or not is_right.any():
            return counted
        questions = [self._question_of[record["id"]] for record in found]
        below = {
            f"{limit:g}": [float((told[which] < limit).mean()) for which in (is_right, ~is_right)]
            for limit in THRESHOLDS
        }
        return {**counted, "auroc": area_under_curve(told, is_right, questions, 0), "below": below}

    @property
    def reported_methods(self) -> list[str]:
        """Methods of the tables: those that ran, and the bound that follows from the alphas."""
        bound = [BEST_OF_ALPHAS] if any(float(one[6:]) > 0 for one in self.alpha_methods) else []
        return [*self.methods, *bound]

    def summary(self) -> dict[str, Any]:
        """Everything the tables show, in plain JSON types."""
        return {
            "run": dict(self.run),
            "main_cell": self.main_cell,
            "choices": dict(self.choices),
            "skipped": dict(self.skipped),
            "speed": {name: dict(values) for name, values in self.speed.items()},
            "cells": {cell: self._cell_summary(cell) for cell in self.cells},
            "confidence": {method: told for method in self.methods if (told := self.telling(method))},
        }

    def _cell_summary(self, cell: str) -> dict[str, Any]:
        found = {}
        for method in self.reported_methods:
            interval = self.interval(cell, method)
            if not interval.n:
                continue
            found[method] = {
                "quality": interval.to_dict(),
                "against_bare": self.difference(cell, method, BARE).to_dict(),
                **(
                    {"auto_against_it": self.difference(cell, AUTO, method).to_dict()}
                    if method in self.compared_with_auto and AUTO in self.methods
                    else {}
                ),
                "recovered": self.recovered(cell, method),
                **{name: value for name in RATES if (value := self.mean(cell, method, name)) is not None},
            }
        return found
