"""Answers of the model that is being fitted, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import nn

from focus_rag.answers import AlphaSetting
from focus_rag.errors import InvalidInputError
from focus_rag.examples import Example
from focus_rag.fitting.asking import answer_texts, measure_quality
from focus_rag.fitting.confidence_fitting import Judged, ask_and_judge
from focus_rag.fitting.grading import Grading, grade, grading_for
from focus_rag.fitting.head_scoring import Head
from focus_rag.fitting.oracle import oracle_quality
from focus_rag.fitting.settings import FitSettings
from focus_rag.fitting.steps import FitSteps
from focus_rag.generator import FocusGenerator
from focus_rag.profile import FocusProfile
from focus_rag.score_split import SplitSetting


class FitAnswers:
    """Asks a model, bare or focused, and grades what it says by one rule throughout a fit.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        dev: The questions that the fit chooses by; how the model answers them undistracted decides how it is graded.
        settings: Of the fit.
        work: Where answers of the bare model are kept.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, dev: Sequence[Example], settings: FitSettings, work: FitSteps
    ) -> None:
        self._model, self._tokenizer, self._dev = model, tokenizer, dev
        self._settings, self._work = settings, work

    @cached_property
    def grading(self) -> Grading:
        """What counts as a right answer of this model."""
        if self._settings.grading is not None:
            return self._settings.grading
        answered = [(text, one.answers) for one, text in zip(self._dev, self._from_gold, strict=True)]
        return grading_for(answered, self._settings.exact_share)

    @cached_property
    def gold_only(self) -> dict[str, float]:
        """Grade of every dev question from its gold passages alone, by key."""
        return {
            one.key: grade(text, one.answers, self.grading)
            for one, text in zip(self._dev, self._from_gold, strict=True)
        }

    def refuse_silent_model(self) -> None:
        """Check that there is anything to gain.

        Raises:
            InvalidInputError: Too few answers from the gold passages alone hold the value.
        """
        held = [grade(text, one.answers, "contains") for one, text in zip(self._dev, self._from_gold, strict=True)]
        share = sum(held) / len(held)
        if share < self._settings.min_answered:
            raise InvalidInputError(
                f"Given the gold passages alone, the model answers {share:.0%} of {len(held)} dev questions, and at "
                f"least {self._settings.min_answered:.0%} are needed for alpha to be fitted: use a model that "
                "follows the prompt, or check the answers. One that thinks first needs a chat template that leaves "
                "it out (--template-option enable_thinking=false, or `layout`)."
            )

    def answerable(self) -> list[Example]:
        """The dev questions that the model answers from their gold passages alone.

        Raises:
            InvalidInputError: They are too few to choose by.
        """
        found = [one for one in self._dev if self.gold_only[one.key]]
        needed = max(self._settings.min_examples // 2, 1)
        if len(found) < needed:
            raise InvalidInputError(
                f"Given the gold passages alone, the model answers {len(found)} of {len(self._dev)} dev questions, "
                f"and at least {needed} are needed to choose by: give more examples and a larger `answerable_among`."
            )
        return found

    def bare_texts(self, which: str, examples: Sequence[Example]) -> list[str]:
        """What the bare model answers to a named list of examples; generated once for all steps that need it."""
        return self._work.step(  # type: ignore[no-any-return]
            f"answers-{which}",
            lambda: answer_texts(self._generator(None), examples, 0.0, max_new_tokens=self._settings.max_new_tokens),
        )

    def grades(
        self,
        profile: FocusProfile | None,
        questions: Sequence[Example],
        alpha: AlphaSetting,
        *,
        gold_missing: bool = False,
        split: SplitSetting = "off",
    ) -> list[float]:
        """Grade of each question at one alpha and split."""
        return measure_quality(
            self._generator(profile),
            questions,
            alpha,
            grading=self.grading,
            max_new_tokens=self._settings.max_new_tokens,
            gold_missing=gold_missing,
            split=split,
        )

    def judged(self, profile: FocusProfile, questions: Sequence[Example], *, gold_missing: bool) -> list[Judged]:
        """What speaks for each answer that a profile gives by itself, and whether it is right."""
        generator = self._generator(profile, measure=True)
        return ask_and_judge(
            generator, questions, self.grading, max_new_tokens=self._settings.max_new_tokens, gold_missing=gold_missing
        )

    def oracle_grades(self, heads: Sequence[Head], questions: Sequence[Example], tau: float) -> list[float]:
        """Grade of each question under split softmax on its gold passages."""
        return oracle_quality(
            self._generator(None),
            heads,
            questions,
            grading=self.grading,
            max_new_tokens=self._settings.max_new_tokens,
            tau=tau,
        )

    @cached_property
    def _from_gold(self) -> list[str]:
        return self.bare_texts("gold-only", [one.gold_only() for one in self._dev])

    def _generator(self, profile: FocusProfile | None, *, measure: bool = False) -> FocusGenerator:
        return FocusGenerator(
            self._model,
            self._tokenizer,
            profile,
            layout=self._settings.layout,
            measure=measure,
            max_batch=self._settings.batch,
        )
