"""What an evaluation runs: the only home of its defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from focus_rag.evaluation.methods import every_name
from focus_rag.evaluation.results import (
    AUTO,
    BARE,
    BEST_FIXED,
    DIRECTIONS,
    GOLD_ONLY,
    RANDOM_HEADS,
    SPLIT_GOLD,
    SPLIT_TUNED,
)
from focus_rag.fitting.grading import Grading
from focus_rag.profile import FocusProfile

CORE = (BARE, GOLD_ONLY, AUTO, DIRECTIONS, BEST_FIXED, RANDOM_HEADS, SPLIT_GOLD, SPLIT_TUNED)
"""Methods that the headline is about; the others can be given fewer questions."""


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
        main_count: Passages of the headline cell, at the highest noise; the largest count if it is not among the
            counts.
        limit: Questions in a cell.
        main_limit: Questions in the headline cell for the methods that it is about (`CORE`); None is the same.
        rival_limit: Questions in every other cell for the other methods; None is the same.
        tune_limit: Dev questions by which tuned methods are chosen.
        speed_questions: Questions asked one by one to measure speed; 0 leaves it out.
        seed: Of everything that is drawn.
        grading: What counts as right: `contains` is the substring match. None: as the profile was fitted, and
            `contains` without one.
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
    seed: int = Field(default=0, ge=0, lt=2**63)
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
