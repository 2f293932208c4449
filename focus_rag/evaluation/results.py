"""Answers on disk, and what they add up to."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.statistics import Difference, Interval, bootstrap_mean, paired_difference

Record = dict[str, Any]
Key = tuple[str, str, str]

BARE, AUTO, GOLD_ONLY, BEST_OF_ALPHAS = "bare", "auto", "gold only", "per-question best alpha"
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
        self._lock = threading.Lock()
        self.records: dict[Key, Record] = {}
        if file.exists():
            self._read()

    def _read(self) -> None:
        data = self._file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.write_bytes(whole)
        for line in whole.decode("utf-8").splitlines():
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
        text = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
        with self._lock:
            for record in records:
                self.records[record["cell"], record["method"], record["id"]] = record
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(text)

    def rewrite(self, order: Iterable[Key]) -> None:
        """Put the answers in the order of the plan, so that the file does not tell how often it was interrupted."""
        temporary = self._file.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as lines:
            for key in order:
                lines.write(json.dumps(self.records[key], ensure_ascii=False, sort_keys=True) + "\n")
        os.replace(temporary, self._file)


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
        """Quality by question id. The per-question best alpha is the best of the bare model and every positive alpha."""
        if method != BEST_OF_ALPHAS:
            return {key: record["scores"]["quality"] for key, record in self.answers(cell, method).items()}
        grids = [self.quality(cell, one) for one in self.alpha_methods if float(one[6:]) > 0]
        bare = self.quality(cell, BARE)
        if not grids or not bare:
            return {}
        return {key: max([value, *(grid[key] for grid in grids if key in grid)]) for key, value in bare.items()}

    @property
    def alpha_methods(self) -> list[str]:
        """Fixed alphas, rising."""
        found = [name for name in self.methods if name.startswith("alpha=")]
        return sorted(found, key=lambda name: float(name[6:]))

    def interval(self, cell: str, method: str) -> Interval:
        """Mean quality with its bootstrap interval."""
        return bootstrap_mean(list(self.quality(cell, method).values()))

    def difference(self, cell: str, method: str, reference: str) -> Difference:
        """Paired difference in quality on the questions that both answered."""
        ours, theirs = self.quality(cell, method), self.quality(cell, reference)
        common = [key for key in ours if key in theirs]
        return paired_difference([ours[key] for key in common], [theirs[key] for key in common])

    def mean(self, cell: str, method: str, name: str) -> float | None:
        """Mean of one of `RATES`; None where it was not measured."""
        values = []
        for record in self.answers(cell, method).values():
            value = record["scores"].get(name, record.get(name))
            if value is not None:
                values.append(float(value))
        return sum(values) / len(values) if values else None

    def recovered(self, cell: str, method: str) -> float | None:
        """Share of the gap between bare and gold-only that a method closes; None where there is no gap to speak of."""
        bare, gold, own = (self.interval(cell, name).mean for name in (BARE, GOLD_ONLY, method))
        if math.isnan(bare + gold + own) or gold - bare < 0.01:
            return None
        return (own - bare) / (gold - bare)

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
                "recovered": self.recovered(cell, method),
                **{name: value for name in RATES if (value := self.mean(cell, method, name)) is not None},
            }
        return found
