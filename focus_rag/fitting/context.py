"""What all phases of a fit share: the model, the questions and who may see which of them, settings, stored steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from focus_rag.examples import Example
from focus_rag.fingerprint import Fingerprint
from focus_rag.fitting.answers import FitAnswers
from focus_rag.fitting.calm_examples import pool_of
from focus_rag.fitting.settings import FitSettings
from focus_rag.fitting.steps import FitSteps
from focus_rag.fitting.teacher_forcing import Rows, TeacherForced, teacher_forced_all
from focus_rag.model_layout import window_of
from focus_rag.prompting import PromptBuilder

Progress = Callable[[str, int, int], None]
"""Called with the phase, steps done and steps in all."""


class FitContext:
    """One fit, as each of its phases sees it.

    Attributes:
        train: Questions that heads are scored and directions trained on.
        dev: Questions that everything is chosen by; never one of the others.
        pool: Passages of all of them, to calm retrievals with.
        answers: What the model answers, graded.
        enough: Dev questions that it takes to choose by.
        counts: Passage counts at which alpha and split are fitted.
        choice_counts: Passage counts of the choice of heads, the largest last.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        train: See above.
        dev: See above.
        settings: Of the fit.
        fingerprint: Of the model.
        work: Where results of steps are kept.
        progress: Told how far each phase is.

    Raises:
        InvalidInputError: The model answers too few dev questions from their gold passages alone.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        train: Sequence[Example],
        dev: Sequence[Example],
        settings: FitSettings,
        fingerprint: Fingerprint,
        work: FitSteps,
        progress: Progress,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.fingerprint, self.work, self.progress = fingerprint, work, progress
        self.pool = pool_of([*train, *dev])
        self.train = list(train[: settings.train_examples])
        if settings.training_order == "shuffled":
            self.train = [one.shuffled(settings.seed) for one in self.train]
        self.asked = list(dev[: settings.answerable_among or settings.dev_questions])
        self.answers = FitAnswers(model, tokenizer, self.asked, settings, work)
        if settings.answerable_among is None:
            self.answers.refuse_silent_model()
            self.dev = self.asked
        else:
            self.dev = self.answers.answerable()[: settings.dev_questions]
        self.enough = max(min(settings.min_examples // 2, len(self.dev)), 1)
        # As many passages as enough questions have: a few wide ones decide nothing.
        widest = sorted((len(one.passages) for one in self.dev), reverse=True)[self.enough - 1]
        self.counts = sorted({count for count in settings.counts if count <= widest}) or [widest]
        self.choice_counts = sorted({min(count, widest) for count in settings.choice_counts})

    def training_sequences(self, part: slice, rows: Rows | None = None) -> list[TeacherForced]:
        """Part of the training examples, laid out with their responses; `rows` instead of the settings' own."""
        return self._laid_out("train", self.train, self.train[part], rows)

    @cached_property
    def shown_sequences(self) -> list[TeacherForced]:
        """Some dev examples at the largest count of the choice, laid out, to look at what steered heads attend to."""
        shown = [one.at_count(self.choice_counts[-1]) for one in self.dev[:24]]
        return self._laid_out("activation", shown, shown)

    def _laid_out(
        self, which: str, every: Sequence[Example], examples: Sequence[Example], rows: Rows | None = None
    ) -> list[TeacherForced]:
        """Some of a named list of examples as sequences with their responses."""
        response = self.settings.response
        own = (
            {}
            if response == "gold"
            else {one.key: text.strip() for one, text in zip(every, self.answers.bare_texts(which, every), strict=True)}
        )
        pairs = [
            (one, text)
            for one in examples
            for text in dict.fromkeys(
                [
                    *([one.answers[0]] if response != "model" else []),
                    *([own[one.key] or one.answers[0]] if response != "gold" else []),
                ]
            )
        ]
        return teacher_forced_all(
            PromptBuilder(self.tokenizer, self.settings.layout),
            [one for one, _ in pairs],
            max_tokens=min(self.settings.max_tokens, window_of(self.model)),
            max_rows=self.settings.max_rows,
            rows=rows or self.settings.rows,
            responses=[text for _, text in pairs],
        )
