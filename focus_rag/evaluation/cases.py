"""Questions to evaluate on, and the axes along which their passages are arranged: count, gold position, noise."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.errors import InvalidInputError
from focus_rag.evaluation.metrics import normalised_answer
from focus_rag.examples import Example, example_of, holds_answer, question_key
from focus_rag.fitting.calm_examples import easy_passages
from focus_rag.passages import Passage
from focus_rag.score_order import ScoreKind

UNMARKED_GOLD = "no passage is marked as gold, and one holds an accepted answer"


@dataclass(frozen=True, slots=True)
class Case:
    """One question to answer.

    Attributes:
        id: Unique within its source.
        example: Question, accepted answers, passages in the order shown, and which of them are gold.
        wrong_answers: Answers that misleading passages support.
        query: What the question asks to be found, where that stands in it by itself.
    """

    id: str
    example: Example
    wrong_answers: tuple[str, ...] = ()
    query: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of its question, and of the query by itself where it is part of that (`question_key`)."""
        return (self.example.key, *([] if self.query is None else [question_key(self.query)]))

    @property
    def abstain(self) -> bool:
        """Whether no passage holds the answer, so that saying so is right."""
        return not self.example.gold

    def with_passages(self, indices: Sequence[int]) -> Case:
        """The same question with these passages, in this order."""
        return replace(self, example=self.example.with_passages(indices))

    def of_these(self, indices: Sequence[int]) -> Case:
        """The same question with fewer passages, of whose scores all tell which end is the better one."""
        return replace(self, example=self.example.of_these(indices))


class Cell(BaseModel):
    """One point of the axes.

    Attributes:
        count: Passages per question; None leaves them as they come.
        noise: Share of the passages beside the gold that are hard distractors (the best scored ones); the others are
            taken from other questions. None leaves them as they come.
        position: Where the gold passage stands: `first`, `middle`, `last`; None leaves it where retrieval put it.
        gold_missing: Whether the gold passages are taken away; questions whose other passages hold an answer are left
            out.
        shuffled_scores: Whether the scores are dealt out anew among the passages, so that they say nothing.
        without_scores: Whether the scores are taken away.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int | None = Field(default=None, ge=1)
    noise: float | None = Field(default=None, ge=0.0, le=1.0)
    position: str | None = Field(default=None, pattern="^(first|middle|last)$")
    gold_missing: bool = False
    shuffled_scores: bool = False
    without_scores: bool = False

    @property
    def key(self) -> str:
        """Short name in files and tables."""
        parts = ["as given" if self.count is None else f"n={self.count}"]
        parts += [] if self.noise is None else [f"noise={self.noise:g}"]
        parts += [] if self.position is None else [f"gold {self.position}"]
        parts += ["gold missing"] if self.gold_missing else []
        parts += ["scores shuffled"] if self.shuffled_scores else []
        parts += ["without scores"] if self.without_scores else []
        return ", ".join(parts)


class CaseSource(Protocol):
    """Where cases come from."""

    @property
    def name(self) -> str:
        """For reports."""

    def cases(self, cell: Cell, limit: int | None, seed: int) -> tuple[Case, ...]:
        """The questions of one cell, the same for the same seed."""


@dataclass(frozen=True, slots=True)
class FileCases:
    """Cases read from files, arranged for each cell.

    Attributes:
        name: For reports.
        all: Every usable case, in file order.
        skipped: Where the rows stand that were left out, by reason.
    """

    name: str
    all: tuple[Case, ...]
    skipped: Mapping[str, tuple[str, ...]]

    def cases(self, cell: Cell, limit: int | None, seed: int) -> tuple[Case, ...]:
        """The first `limit` cases of a seeded order, arranged; those that cannot be arranged so are left out."""
        order = list(self.all)
        random.Random(f"order {seed}").shuffle(order)
        pool = [passage for case in self.all for passage in case.example.passages]
        found: list[Case] = []
        for case in order:
            if limit is not None and len(found) >= limit:
                break
            arranged = arrange(case, cell, pool, seed)
            if arranged is not None:
                found.append(arranged)
        return tuple(found)


class EmbeddedCases:
    """Questions of the generated world that comes with the package, over a BM25 retriever.

    Args:
        split: "dev" to choose by, "test" to report.
        rich: Share of facts told and of questions asked in sentence forms that training did not have; the rest are put
            plainly.
    """

    def __init__(self, split: Literal["train", "dev", "test"] = "test", rich: float = 0.0) -> None:
        self.split = split
        self.rich = rich

    @property
    def name(self) -> str:
        return f"generated world, {self.split} split, {self.rich:.0%} in free sentence forms"

    def cases(self, cell: Cell, limit: int | None, seed: int) -> tuple[Case, ...]:
        """Questions with `count` passages (20 if not given) at a noise (1 if not given)."""
        from focus_rag.embedded.retrieval import evaluation_examples

        count = cell.count or 20
        noise = 1.0 if cell.noise is None else cell.noise
        rows = evaluation_examples(
            self.split,
            limit or 300,
            count,
            noise,
            seed,
            rich=self.rich,
            with_gold=not cell.gold_missing,
        )
        rest = cell.model_copy(update={"count": None, "noise": None, "gold_missing": False})
        cases = (case for row in rows if isinstance(case := case_of(row), Case))
        return tuple(done for case in cases if (done := arrange(case, rest, (), seed)) is not None)


def case_of(row: Mapping[str, Any], *, score_kind: ScoreKind | None = None) -> Case | str:
    """The case of a row of the JSONL schema, or why there is none.

    Unlike fitting, evaluation also takes questions without a gold passage (the right answer is then to say so, so no
    passage may hold an accepted one) and with nothing but gold. `score_kind` is that of rows which do not say it.
    """
    answers = row.get("answers")
    if isinstance(answers, list):
        # The published scorers reduce "The" or "?" to nothing, which stands in every answer.
        row = {**row, "answers": [one for one in answers if isinstance(one, str) and normalised_answer(one)]}
    example = example_of(row, score_kind=score_kind, for_fit=False)
    if isinstance(example, str):
        return example
    if not example.gold and _holds_answer(example.passages, example.answers):
        return UNMARKED_GOLD
    ids = [one.get("id") for one in row["passages"]]
    passages = tuple(
        replace(passage, id=str(own)) if own is not None else passage
        for passage, own in zip(example.passages, ids, strict=True)
    )
    listed = row.get("wrong_answers")
    wrong = tuple(
        one for one in (listed if isinstance(listed, list) else ()) if isinstance(one, str) and normalised_answer(one)
    )
    query = row.get("query")
    return Case(
        str(row.get("id") or example.key[:16]),
        replace(example, passages=passages),
        wrong,
        query if isinstance(query, str) else None,
    )


def arrange(case: Case, cell: Cell, pool: Sequence[Passage], seed: int) -> Case | None:
    """Put the passages of a case as a cell wants them; None where it cannot be done.

    Args:
        case: The case as it came.
        cell: The point of the axes.
        pool: Passages of all questions, the source of easy distractors.
        seed: With the case's id it decides everything that is drawn.

    Raises:
        InvalidInputError: The cell asks for noise below 1 and there is no pool.
    """
    rng = random.Random(f"{case.id} {cell.key} {seed}")
    n_before = len(case.example.passages)
    if cell.gold_missing:
        if not case.example.gold:
            return None
        case = case.with_passages(
            [index for index in range(len(case.example.passages)) if index not in case.example.gold]
        )
        if not case.example.passages or _holds_answer(case.example.passages, case.example.answers):
            return None
    if cell.count is not None or cell.noise is not None:
        counted = _counted(case, cell, pool, rng, n_before - len(case.example.passages))
        if counted is None:
            return None
        case = counted
    if cell.position is not None:
        if not case.example.gold:
            return None
        case = _positioned(case, cell.position)
    if cell.shuffled_scores:
        case = replace(case, example=case.example.with_shuffled_scores(seed))
    if cell.without_scores:
        case = replace(case, example=case.example.without_scores())
    return case


def _holds_answer(passages: Sequence[Passage], answers: Sequence[str]) -> bool:
    return any(holds_answer(passage.content, answers) for passage in passages)


def _counted(case: Case, cell: Cell, pool: Sequence[Passage], rng: random.Random, n_taken: int) -> Case | None:
    """The case with as many passages as the cell wants; `n_taken` gold ones were taken away before."""
    example = case.example
    count = cell.count or len(example.passages)
    gold = sorted(example.gold)[:count]
    others = [index for index in example.best_first() if index not in example.gold]
    wanted = count - len(gold)
    n_hard = wanted if cell.noise is None else round(cell.noise * wanted)
    if n_hard > len(others) + n_taken:
        return None
    # A row that had just enough has fewer without its gold: that is still the row without its gold.
    n_short = max(n_hard - len(others), 0)
    n_hard, wanted = n_hard - n_short, wanted - n_short
    hard = others[:n_hard]
    easy: list[Passage] | None = []
    if wanted > n_hard:
        if not pool:
            raise InvalidInputError("Noise below 1 needs passages of other questions, and this source has none.")
        easy = easy_passages(example, rng.sample(pool, min(len(pool), 10 * wanted + 20)), wanted - n_hard)
    return None if easy is None else replace(case, example=example.with_passages(sorted([*gold, *hard]), easy))


def _positioned(case: Case, position: str) -> Case:
    n, gold = len(case.example.passages), sorted(case.example.gold)
    others = [index for index in range(n) if index not in case.example.gold]
    at = {"first": 0, "middle": len(others) // 2, "last": len(others)}[position]
    return replace(case, example=case.example.reordered([*others[:at], *gold, *others[at:]]))


def cells_of(
    counts: Iterable[int | None],
    noises: Iterable[float | None] = (None,),
    positions: Iterable[str] = (),
    *,
    main: Cell | None = None,
    gold_missing: bool = False,
    shuffled_scores: bool = False,
    without_scores: bool = False,
) -> tuple[Cell, ...]:
    """The cells of a run: counts by noises, then gold positions and the other kinds of noise around one cell.

    Args:
        counts: Passages per question.
        noises: Shares of hard distractors.
        positions: Where to put the gold passage.
        main: The cell that positions, missing gold and shuffled scores start from; by default the one with the most
            passages and the most noise.
        gold_missing: Whether to take the gold passages away.
        shuffled_scores: Whether to deal the scores out anew.
        without_scores: Whether to take them away.
    """
    counts, noises = list(counts), list(noises)
    cells = [Cell(count=count, noise=noise) for count in counts for noise in noises]
    if main is None:
        main = max(cells, key=lambda cell: (cell.count or 0, cell.noise or 0.0))
    cells += [main.model_copy(update={"position": position}) for position in positions]
    if gold_missing:
        cells.append(main.model_copy(update={"gold_missing": True}))
    if shuffled_scores:
        cells.append(main.model_copy(update={"shuffled_scores": True}))
    if without_scores:
        cells.append(main.model_copy(update={"without_scores": True}))
    return tuple(dict.fromkeys(cells))
